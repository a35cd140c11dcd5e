"use strict";
// Makes the form of a task quick: keys, clicks and drags set the same controls that it has without a script.
document.documentElement.classList.add("js");

document.addEventListener("DOMContentLoaded", () => {
  const undo = document.getElementById("undo");
  const form = document.querySelector("form[data-judge]");
  if (form) judge(form, undo);
  else if (undo) takeBack(undo);
});

const chord = (event) => event.ctrlKey || event.metaKey || event.altKey;

// The page after the last task: the answer before it is taken back once.
function takeBack(undo) {
  let sending = false;
  undo.addEventListener("submit", (event) => (sending ? event.preventDefault() : (sending = true)));
  addEventListener("pageshow", () => (sending = false));
  document.addEventListener("keydown", (event) => event.key === "u" && !chord(event) && !event.repeat && undo.requestSubmit());
}

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

// ---- the form: which step the keys are for, and what Enter does ----

function judge(form, undo) {
  form.noValidate = true; // what is missing is told in the hint, also of controls that the script hides
  const cards = [...form.querySelectorAll(".response")];
  const letters = cards.map((card) => card.dataset.letter);
  const hint = document.getElementById("hint");
  const reveal = document.getElementById("reveal");
  const ideal = document.getElementById("ideal");
  const shelf = document.getElementById("shelf");
  const skip = document.querySelector("#skip form");
  const touch = matchMedia("(hover: none)").matches;
  const keep = draft(form);
  let step = null;
  let flagged = 0;
  let sending = false;

  const changed = (place) => {
    if (place !== undefined) flagged = place;
    show();
  };
  const compare = shelf ? ranking(form, cards, shelf, changed) : form.querySelector(".scale") ? scale(form, changed) : null;
  const rates = form.querySelector(".rating") ? rating(cards, changed) : null;
  const steps = [compare, rates].filter(Boolean);
  const flags = form.querySelector(".flags") ? flagging(cards) : null;
  step = steps[0] || null;

  const needsIdeal = () => ideal && !steps.length && !ideal.value.trim();
  const hidden = () => reveal !== null && !reveal.checked;

  function show(told = "") {
    for (const each of steps) each.active(each === step);
    if (flags) flags.active(step === flags ? flagged : -1);
    const waiting = steps.find((each) => !each.complete()) || null;
    hint.classList.toggle("wrong", told !== "");
    if (told) hint.textContent = told;
    else if (hidden()) hint.textContent = touch ? "" : "b shows what is blurred";
    else if (step === flags && flags) hint.textContent = `Flags of ${letters[flagged]}: press a number`;
    else if (step && !step.complete()) hint.textContent = step.hint(touch);
    else if (waiting) hint.textContent = touch ? waiting.hint(touch) : "Enter goes on to the ratings";
    else hint.textContent = needsIdeal() ? "Write the ideal response" : compare ? compare.said() : "";
    form.classList.toggle("ready", !waiting && !needsIdeal());
    keep();
  }

  // Saves, or goes to the first thing that is missing and says so.
  function goOn() {
    const waiting = steps.find((each) => !each.complete());
    if (hidden()) return show("The task is blurred: show it first, or skip it");
    if (waiting) {
      const arrived = waiting !== step;
      step = waiting;
      waiting.enter();
      return show(arrived ? "" : waiting.hint(touch));
    }
    if (needsIdeal()) {
      ideal.focus();
      return show("Write the ideal response");
    }
    form.requestSubmit();
  }

  form.addEventListener("submit", (event) => {
    if (sending || hidden() || needsIdeal() || steps.some((each) => !each.complete())) {
      event.preventDefault();
      if (!sending) goOn();
      return;
    }
    sending = true;
    hint.textContent = "Saving";
  });
  addEventListener("pageshow", () => (sending = false));
  // A skip that is refused comes back with what was said so far.
  skip?.addEventListener("formdata", (event) => {
    for (const [name, value] of new FormData(form)) if (!unsaid.includes(name)) event.formData.append(name, value);
  });
  form.addEventListener("input", () => show());

  const lift = () => {
    for (const part of form.querySelectorAll(".veil, .shelf, .scale")) part.inert = hidden();
    show();
  };
  if (reveal) reveal.addEventListener("change", lift);

  for (const button of form.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => {
      const text = cards[button.dataset.copy].dataset.text;
      const own = ideal.value.trim() && !cards.some((card) => card.dataset.text === ideal.value);
      if (own && !confirm("Replace what you have written?")) return;
      ideal.value = text;
      ideal.focus();
      ideal.setSelectionRange(0, 0);
      show();
    });
  }

  function write(name) {
    const box = document.getElementById(`${name}-box`);
    box.open = true;
    box.querySelector("textarea").focus();
  }

  const written = () => ["ideal", "note"].some((name) => document.getElementById(name)?.value !== document.getElementById(name)?.defaultValue);
  undo?.addEventListener("submit", (event) => {
    const stays = () => written() && !confirm("What you have written for this task is lost when you undo the last answer. Undo it?");
    if (sending || stays()) event.preventDefault();
    else sending = true;
  });

  const commands = {
    "?": () => document.getElementById("keys")?.showPopover(),
    g: () => document.getElementById("guidelines")?.showPopover(),
    s: () => document.getElementById("skip")?.showPopover(),
    u: () => undo?.requestSubmit(),
    n: () => write("note"),
    i: () => ideal && write("ideal"),
    f: () => flags && (step = flags),
    r: () => rates && ((step = rates), rates.enter()),
  };

  // The keys of flagging: letters choose the response, numbers set its flags.
  function flagKey(key) {
    const place = letters.indexOf(key.toUpperCase());
    if (["Enter", "Escape"].includes(key) || (key === "f" && place < 0)) step = steps[0] || null;
    else if (place >= 0) flagged = place;
    else if (!flags.toggle(flagged, Number(key) - 1)) return false;
    return true;
  }

  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.isComposing || sending) return;
    if (event.repeat && !key.startsWith("Arrow")) return; // a key that is held is pressed once; arrows stop at the end of the scale
    const sheet = document.querySelector("[popover]:popover-open");
    if (sheet) return sheetKey(sheet, event);
    if (key === "Enter" && (event.ctrlKey || event.metaKey)) return take(event, goOn);
    if (chord(event)) return;
    if (target.matches("textarea")) {
      if (key === "Escape") target.blur();
      return;
    }
    if (hidden() && !["g", "s", "u", "?"].includes(key)) {
      if (key === "b") take(event, () => ((reveal.checked = true), lift()));
      return;
    }
    if (step && step === flags) {
      if (flagKey(key)) take(event, show);
      return;
    }
    const walks = key.startsWith("Arrow") && target.matches("input[type=radio]:not([name=strength])");
    if (step && !walks && step.key(key)) return take(event, show);
    if (key === "Enter" && !target.matches("button, summary, a")) return take(event, goOn);
    if (Object.hasOwn(commands, key)) take(event, () => (commands[key](), key !== "u" && show()));
  });

  lift();
}

const unsaid = ["csrf", "revision"]; // fields of a form that say nothing of its task

// What is said of a task outlives its page in this tab: a reload, or a sign-in that ran out meanwhile. Returns what keeps it.
function draft(form) {
  const said = () => [...new FormData(form)].filter(([name, value]) => value && !unsaid.includes(name));
  const kept = JSON.parse(sessionStorage.getItem("draft") || "{}");
  // What the server sends back with the form is newer.
  if (kept.task === form.action && !said().length) fill(form, kept.said);
  return () => sessionStorage.setItem("draft", JSON.stringify({ task: form.action, said: said() }));
}

function fill(form, said) {
  for (const [name, value] of said) {
    for (const control of form.querySelectorAll(`[name="${name}"]`)) {
      if (control.matches("textarea")) {
        control.value = value;
        control.closest("details").open = true;
      } else control.checked ||= control.value === value;
    }
  }
}

function take(event, action) {
  event.preventDefault();
  action();
}

// Keys while guidelines, the keys themselves, or the reasons for a skip lie over the page.
function sheetKey(sheet, event) {
  if (chord(event) || event.target.matches("input[type=text]")) return;
  if (event.key === { guidelines: "g", keys: "?", skip: "s" }[sheet.id]) return take(event, () => sheet.hidePopover());
  const reason = sheet.querySelectorAll("input[name=reason]")[Number(event.key) - 1];
  if (reason) take(event, () => ((reason.checked = true), reason.focus()));
}

// ---- ranks: groups of places, best group first; the places of a group tie ----

function ranking(form, cards, shelf, changed) {
  const places = cards.map((_, place) => place);
  const radios = (place) => [...form.querySelectorAll(`input[name=rank_${place}]`)];
  const letter = (place) => cards[place].dataset.letter;
  let groups = readGroups();
  let past = []; // rankings before each step, for Backspace
  let tie = false;

  function readGroups() {
    const found = places.map((place) => radios(place).find((radio) => radio.checked)?.value);
    const ranks = [...new Set(found.filter(Boolean))].sort((a, b) => a - b);
    return ranks.map((rank) => places.filter((place) => found[place] === rank));
  }

  const without = (place) => groups.map((group) => group.filter((other) => other !== place));
  const left = () => places.filter((place) => !groups.flat().includes(place));
  const complete = () => left().length === 0;

  function set(next, { last = true, place } = {}) {
    past.push(groups);
    groups = next.filter((group) => group.length);
    if (last && groups.length && left().length === 1) groups = [...groups, left()]; // there is but one way for it to come last
    tie = false;
    draw();
    changed(place);
  }

  function pick(place) {
    if (!left().includes(place)) return;
    const joins = tie && groups.length > 0;
    set(joins ? [...groups.slice(0, -1), [...groups.at(-1), place]] : [...groups, [place]], { place });
  }

  function tieLast() {
    if (!complete()) {
      tie = !tie && groups.length > 0;
      return draw();
    }
    const last = groups.at(-1);
    if (last.length > 1) set([...groups.slice(0, -1), last.slice(0, -1), last.slice(-1)]);
    else if (groups.length > 1) set([...groups.slice(0, -2), [...groups.at(-2), ...last]]);
  }

  function tieRest() {
    const rest = left();
    if (rest.length) set(tie && groups.length ? [...groups.slice(0, -1), [...groups.at(-1), ...rest]] : [...groups, rest]);
  }

  function back() {
    if (tie) tie = false;
    else groups = past.pop() || groups.slice(0, -1);
    draw();
  }

  // Where a dragged response lands: on another (they tie), in a gap between groups, or back on the heap.
  function drop(place, spot) {
    if (spot.dataset.gap !== undefined) set(without(place).toSpliced(Number(spot.dataset.gap), 0, [place]), { place });
    else if (spot.dataset.heap !== undefined) set(without(place), { last: false, place });
    else {
      const onto = Number(spot.dataset.drag);
      if (onto === place) return;
      if (left().includes(onto)) return pick(place);
      set(without(place).map((group) => (group.includes(onto) ? [...group, place] : group)), { place });
    }
  }

  function chip(place, label) {
    const made = element("button", "chip", letter(place));
    made.type = "button";
    made.dataset.drag = place;
    made.setAttribute("aria-label", label);
    return made;
  }

  function draw() {
    for (const place of places) {
      const rank = groups.findIndex((group) => group.includes(place)) + 1;
      for (const radio of radios(place)) radio.checked = rank > 0 && Number(radio.value) === rank;
      const tied = rank > 0 && groups[rank - 1].length > 1;
      const badge = cards[place].querySelector(".standing");
      badge.hidden = rank === 0;
      badge.textContent = rank ? `${tied ? "=" : ""}${rank}` : "";
      cards[place].querySelector(".pick").hidden = rank > 0;
      cards[place].classList.toggle("best", rank === 1);
      cards[place].classList.toggle("placed", rank > 0);
    }
    const focused = shelf.contains(document.activeElement) ? document.activeElement.dataset.drag : undefined;
    shelf.replaceChildren(...heapAndGroups());
    if (focused !== undefined) shelf.querySelector(`[data-drag="${focused}"]`)?.focus();
  }

  function heapAndGroups() {
    const heap = element("span", "heap");
    heap.dataset.heap = "";
    heap.append(...left().map((place) => chip(place, `Pick ${letter(place)} next`)));
    const gap = (index) => {
      const made = element("span", "gap", index ? "›" : "");
      made.dataset.gap = index;
      return made;
    };
    const row = element("span", tie ? "order tying" : "order");
    row.append(gap(0));
    groups.forEach((group, index) => {
      const tied = element("span", "group");
      tied.append(...group.map((place) => chip(place, `${letter(place)}, rank ${index + 1}; take it out`)));
      row.append(tied, gap(index + 1));
    });
    return [row, heap];
  }

  function click(place) {
    if (left().includes(place)) pick(place);
    else set(without(place), { last: false, place });
  }

  shelf.addEventListener("click", (event) => event.target.dataset.drag !== undefined && event.detail === 0 && click(Number(event.target.dataset.drag)));
  for (const place of places) cards[place].querySelector(".pick").addEventListener("click", () => pick(place));
  dragging(form, (place) => letter(place), click, drop);
  draw();

  return {
    complete,
    active: (on) => shelf.classList.toggle("active", on),
    enter: () => {},
    said: () => groups.map((group) => group.map(letter).join(" and ")).join(", then "),
    hint: (touch) => {
      if (touch) return groups.length ? "Tap the next best" : "Tap the best first";
      return tie ? `Which ties with ${groups.at(-1).map(letter).join(" and ")}?` : groups.length ? "Which comes next? = ties it, 0 ties the rest" : `Which is best? 1–${Math.min(9, places.length)}`;
    },
    key: (key) => {
      const place = /^[1-9]$/.test(key) ? Number(key) - 1 : /^[a-e]$/i.test(key) ? key.toLowerCase().charCodeAt(0) - 97 : -1;
      if (place >= 0 && place < places.length) pick(place);
      else if (key === "=") tieLast();
      else if (key === "0") tieRest();
      else if (key === "Backspace") back();
      else if (key === "Delete") set([]);
      else return false;
      return true;
    },
  };
}

// Drags whatever has `data-drag` onto the shelf, by mouse, pen or finger; a press without a move on a chip is a click.
function dragging(form, name, click, drop) {
  let held = null;

  form.addEventListener("pointerdown", (event) => {
    const source = event.target.closest("[data-drag]");
    if (!source || event.button !== 0 || event.target.closest(".pick, a")) return;
    held = { place: Number(source.dataset.drag), chip: source.matches(".chip"), x: event.clientX, y: event.clientY, ghost: null };
  });
  document.addEventListener("pointermove", (event) => {
    if (!held) return;
    if (!held.ghost) {
      if (Math.hypot(event.clientX - held.x, event.clientY - held.y) < 6) return;
      held.ghost = element("span", "chip ghost", name(held.place));
      document.body.append(held.ghost);
      form.classList.add("dragging");
      getSelection().removeAllRanges();
    }
    held.ghost.style.left = `${event.clientX}px`;
    held.ghost.style.top = `${event.clientY}px`;
    const spot = under(event);
    for (const other of form.querySelectorAll(".aim")) if (other !== spot) other.classList.remove("aim");
    spot?.classList.add("aim");
  });
  document.addEventListener("pointerup", (event) => {
    if (!held) return;
    const { place, chip, ghost } = held;
    const spot = ghost && under(event);
    end();
    if (spot) drop(place, spot);
    else if (!ghost && chip) click(place);
  });
  document.addEventListener("pointercancel", () => held && end());

  const under = (event) => document.elementFromPoint(event.clientX, event.clientY)?.closest(".shelf .chip, .shelf .gap, .shelf .heap");

  function end() {
    held.ghost?.remove();
    form.classList.remove("dragging");
    held = null;
    if (document.activeElement.matches(".chip")) document.activeElement.blur(); // or Enter would press it again, and not save
  }
}

// ---- strength of a preference between two ----

function scale(form, changed) {
  const radios = [...form.querySelectorAll("input[name=strength]")];
  const middle = (radios.length - 1) / 2;
  const chosen = () => radios.findIndex((radio) => radio.checked);

  function set(index) {
    radios[index].checked = true;
    if (radios.includes(document.activeElement)) radios[index].focus();
    changed();
  }

  return {
    complete: () => chosen() >= 0,
    active: (on) => form.querySelector(".scale").classList.toggle("active", on),
    enter: () => {},
    said: () => radios[chosen()].getAttribute("aria-label"),
    hint: (touch) => (touch ? "Which is better, and how much?" : "← or → , or 1–9: which is better, and how much?"),
    key: (key) => {
      const from = chosen() < 0 ? middle : chosen();
      if (key === "ArrowLeft") set(Math.max(0, from - 1));
      else if (key === "ArrowRight") set(Math.min(radios.length - 1, from + 1));
      else if (/^[1-9]$/.test(key) && radios[key - 1]) set(Number(key) - 1);
      else if (key === "=" || key === "0") set(middle);
      else if (key === "Backspace" || key === "Delete") {
        for (const radio of radios) radio.checked = false;
        changed();
      } else return false;
      return true;
    },
  };
}

// ---- ratings, one after the other ----

function rating(cards, changed) {
  const cells = cards.flatMap((card) => [...card.querySelectorAll(".rating")]);
  const value = (cell) => cell.querySelector("input:checked");
  const firstOpen = () => cells.findIndex((cell) => !value(cell));
  let at = 0;
  let on = false;

  function go(index) {
    at = Math.max(0, Math.min(cells.length - 1, index));
    cells[at].scrollIntoView({ block: "nearest" });
    changed();
  }

  for (const [index, cell] of cells.entries()) {
    cell.addEventListener("change", () => {
      at = index;
      changed();
    });
  }

  return {
    complete: () => firstOpen() < 0,
    active: (now) => {
      on = now;
      for (const [index, cell] of cells.entries()) cell.classList.toggle("current", on && index === at);
    },
    enter: () => go(firstOpen() < 0 ? 0 : firstOpen()),
    hint: (touch) => {
      const cell = cells[on && !value(cells[at]) ? at : Math.max(0, firstOpen())];
      return `How ${cell.querySelector("legend").textContent} is ${cell.closest(".response").dataset.letter}? ${touch ? "" : "1–7"}`;
    },
    key: (key) => {
      const radio = /^[1-9]$/.test(key) && cells[at].querySelector(`input[value="${key}"]`);
      const place = /^[a-e]$/i.test(key) ? key.toLowerCase().charCodeAt(0) - 97 : -1;
      if (radio) {
        radio.checked = true;
        go(at + 1);
      } else if (cards[place]) go(cells.indexOf(cards[place].querySelector(".rating")));
      else if (key === "Backspace") {
        const before = value(cells[at]) ? at : Math.max(0, at - 1);
        if (value(cells[before])) value(cells[before]).checked = false;
        go(before);
      } else return false;
      return true;
    },
  };
}

// ---- flags ----

function flagging(cards) {
  const boxes = cards.map((card) => [...card.querySelectorAll(".flags input")]);
  return {
    complete: () => true,
    active: (place) => cards.forEach((card, index) => card.querySelector(".flags").classList.toggle("current", index === place)),
    toggle: (place, index) => {
      const box = boxes[place][index];
      if (box) box.checked = !box.checked;
      return Boolean(box);
    },
  };
}
