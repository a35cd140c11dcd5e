/* Attention of one token per row to its prompt, which rows may share, and to its own tokens up to itself: softmax(scale q K^T) V.

   Keys and values are read once, block by block, with the softmax put right as higher scores come (Milakov and Gimelshein 2018,
   arXiv:1805.02867). Rows that share a prompt go through its blocks together (Juravsky et al. 2024, Hydragen, section 3). */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS 64 /* of a block; a multiple of 4 * LANES */
#define QUERIES 64 /* that share a prompt's blocks at most, unless one row has more */
#if defined __AVX512F__
#define LANES 16
#define TILE 4 /* queries whose sums, four times LANES each, stay in registers */
#elif defined __AVX__
#define LANES 8
#define TILE 2
#else
#define LANES 4
#define TILE 2
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t places __attribute__((vector_size(16)));

/* Sequences, each [heads, capacity, dim], one after another. */
struct slots {
    float *keys, *values;
    const int64_t *start, *capacity; /* of each slot, in tokens */
};

/* Queries, and what they have found so far. */
struct state {
    float *queries; /* [count, dim], times the scale */
    float *found;   /* sums of weighted values, [count, dim] */
    float *highest; /* scores, [count] */
    float *total;   /* sums of weights, [count] */
    float *weights; /* in the block at hand, [count, COLUMNS] */
    float *turned;  /* keys of the block at hand, [dim, COLUMNS] */
};

/* c += a b for some rows and 16 n columns; c is [rows, 16 n], a [rows, size], b [size, 16 n], each with its stride. */
INLINE void multiply_tile(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t size,
                          int rows, int n)
{
    lanes sums[TILE][4];
    for (int r = 0; r < rows; r++) memcpy(sums[r], c + r * c_stride, n * sizeof(lanes));
    for (int64_t i = 0; i < size; i++) {
        const lanes *line = (const lanes *)(b + i * b_stride);
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < n; j++) sums[r][j] += a[r * a_stride + i] * line[j];
    }
    for (int r = 0; r < rows; r++) memcpy(c + r * c_stride, sums[r], n * sizeof(lanes));
}

INLINE void multiply_rows(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t size,
                          int64_t width, int rows)
{
    int64_t at = 0;
    for (; at + 4 * LANES <= width; at += 4 * LANES) multiply_tile(c + at, c_stride, a, a_stride, b + at, b_stride, size, rows, 4);
    for (; at + LANES <= width; at += LANES) multiply_tile(c + at, c_stride, a, a_stride, b + at, b_stride, size, rows, 1);
    for (int r = 0; r < rows && at < width; r++) {
        const float *x = a + r * a_stride;
        float *sums = c + r * c_stride;
        int64_t i = 0;
        for (; i + 4 <= size; i += 4) {
            const float *y = b + i * b_stride;
#pragma omp simd
            for (int64_t j = at; j < width; j++)
                sums[j] += (x[i] * y[j] + x[i + 1] * y[b_stride + j]) + (x[i + 2] * y[2 * b_stride + j] + x[i + 3] * y[3 * b_stride + j]);
        }
        for (; i < size; i++)
#pragma omp simd
            for (int64_t j = at; j < width; j++) sums[j] += x[i] * b[i * b_stride + j];
    }
}

/* c += a b; c is [rows, width], a [rows, size], b [size, width], each with its stride. */
INLINE void multiply(float *c, int64_t c_stride, const float *a, int64_t a_stride, const float *b, int64_t b_stride, int64_t rows,
                     int64_t size, int64_t width)
{
    int64_t r = 0;
    for (; r + TILE <= rows; r += TILE)
        multiply_rows(c + r * c_stride, c_stride, a + r * a_stride, a_stride, b, b_stride, size, width, TILE);
    for (; r + 2 <= rows; r += 2) multiply_rows(c + r * c_stride, c_stride, a + r * a_stride, a_stride, b, b_stride, size, width, 2);
    if (r < rows) multiply_rows(c + r * c_stride, c_stride, a + r * a_stride, a_stride, b, b_stride, size, width, 1);
}

/* [width, dim] -> [dim, COLUMNS], in squares of four times four. */
INLINE void turn(float *turned, const float *keys, int64_t width, int64_t dim)
{
    int64_t c = 0;
    for (; c + 4 <= width; c += 4) {
        int64_t d = 0;
        for (; d + 4 <= dim; d += 4) {
            const float *from = keys + c * dim + d;
            float *to = turned + d * COLUMNS + c;
            four k[4], half[4], out[4];
            for (int i = 0; i < 4; i++) k[i] = *(const four *)(from + i * dim);
            half[0] = __builtin_shuffle(k[0], k[1], (places){0, 4, 1, 5}), half[1] = __builtin_shuffle(k[2], k[3], (places){0, 4, 1, 5});
            half[2] = __builtin_shuffle(k[0], k[1], (places){2, 6, 3, 7}), half[3] = __builtin_shuffle(k[2], k[3], (places){2, 6, 3, 7});
            for (int i = 0; i < 4; i += 2) {
                out[i] = __builtin_shuffle(half[i], half[i + 1], (places){0, 1, 4, 5});
                out[i + 1] = __builtin_shuffle(half[i], half[i + 1], (places){2, 3, 6, 7});
            }
            for (int i = 0; i < 4; i++) *(four *)(to + i * COLUMNS) = out[i];
        }
        for (; d < dim; d++)
            for (int i = 0; i < 4; i++) turned[d * COLUMNS + c + i] = keys[(c + i) * dim + d];
    }
    for (; c < width; c++)
        for (int64_t d = 0; d < dim; d++) turned[d * COLUMNS + c] = keys[c * dim + d];
}

INLINE void score(struct state s, int64_t count, const float *keys, int64_t width, int64_t dim)
{
    if (8 * count < dim) { /* sums across lanes, which few queries have done with before the keys are turned */
        for (int64_t q = 0; q < count; q++)
            for (int64_t c = 0; c < width; c++) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int64_t d = 0; d < dim; d++) sum += s.queries[q * dim + d] * keys[c * dim + d];
                s.weights[q * COLUMNS + c] = sum;
            }
        return;
    }
    turn(s.turned, keys, width, dim);
    memset(s.weights, 0, count * COLUMNS * sizeof *s.weights);
    multiply(s.weights, COLUMNS, s.queries, dim, s.turned, COLUMNS, count, dim, (width + LANES - 1) / LANES * LANES);
}

/* exp(x) of x <= 0 to 1e-7, and no less than 1e-38: 2^n times the polynomial of Cephes' expf (Moshier 1989). */
INLINE float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    const float rounder = 12582912.0f; /* 3 * 2^22, whose last bit is worth 1 */
    float shifted = x * 1.44269504f + rounder, n = shifted - rounder;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << 23) + (127u << 23);
    float power;
    memcpy(&power, &bits, sizeof power);
    return y * power;
}

/* Scores become weights, and what was found before is weighted anew. */
INLINE void weigh(struct state s, int64_t count, int64_t width, int64_t dim)
{
    int64_t padded = (width + LANES - 1) / LANES * LANES;
    for (int64_t q = 0; q < count; q++) {
        float *w = s.weights + q * COLUMNS, before = s.highest[q], highest = before, sum = 0;
        for (int64_t c = width; c < padded; c++) w[c] = -INFINITY;
#pragma omp simd reduction(max : highest)
        for (int64_t c = 0; c < padded; c++) highest = w[c] > highest ? w[c] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < padded; c++) sum += w[c] = exponential(w[c] - highest);
        float kept = exponential(before - highest);
        s.highest[q] = highest;
        s.total[q] = s.total[q] * kept + sum;
        for (int64_t d = 0; d < dim; d++) s.found[q * dim + d] *= kept;
    }
}

INLINE void fetch(const float *from, int64_t size)
{
    for (int64_t i = 0; i < size; i += 16) __builtin_prefetch(from + i);
}

INLINE void read_blocks(struct state s, int64_t count, const float *keys, const float *values, int64_t end, int64_t dim)
{
    for (int64_t first = 0; first < end; first += COLUMNS) {
        int64_t left = end - first, width = left < COLUMNS ? left : COLUMNS, next = left < 2 * COLUMNS ? left - width : COLUMNS;
        fetch(values + first * dim, width * dim);
        score(s, count, keys + first * dim, width, dim);
        fetch(keys + (first + COLUMNS) * dim, next * dim);
        weigh(s, count, width, dim);
        multiply(s.found, dim, s.weights, COLUMNS, values + first * dim, dim, count, width, dim);
    }
}

/* Queries attend to the first tokens of one head of a slot; the compiler knows the common dimensions. */
static void read_slot(struct state s, int64_t count, const struct slots *of, int64_t slot, int64_t end, int64_t head, int64_t heads,
                      int64_t dim)
{
    int64_t at = (of->start[slot] * heads + head * of->capacity[slot]) * dim;
    const float *keys = of->keys + at, *values = of->values + at;
    switch (dim) {
    case 8: read_blocks(s, count, keys, values, end, 8); break;
    case 16: read_blocks(s, count, keys, values, end, 16); break;
    case 32: read_blocks(s, count, keys, values, end, 32); break;
    case 64: read_blocks(s, count, keys, values, end, 64); break;
    case 128: read_blocks(s, count, keys, values, end, 128); break;
    default: read_blocks(s, count, keys, values, end, dim);
    }
}

/* Queries and results are [num_rows, heads, group, dim]; keys and values of these tokens, [num_rows, heads, dim], are stored. With its
   token a row has `ends[row]` of its own, in slot `row` of `rows`. Where there are prompts, its own is in slot `home[row]`, with
   `lengths[home[row]]` tokens, and rows of one home lie side by side in `order`. Returns whether there was room for it all. */
int decode_attention(const float *queries, const float *keys, const float *values, float *results, int64_t num_rows, int64_t heads,
                     int64_t group, int64_t dim, float scale, const struct slots *rows, const int64_t *ends, const struct slots *prompts,
                     const int64_t *lengths, const int64_t *home, const int64_t *order)
{
    int64_t most = prompts && group < QUERIES ? QUERIES / group : 1, num_tasks = 0;
    int failed = 0;
    for (int64_t row = 0; row < num_rows; row++)
        if (ends[row] < 1 || ends[row] > rows->capacity[row]) return 0;
    int64_t *first = malloc((num_rows + 1) * sizeof *first); /* of the rows in each task, by their order */
    if (!first) return 0;
    for (int64_t i = 0; i < num_rows; i++)
        if (!i || i - first[num_tasks - 1] == most || home[order[i]] != home[order[i - 1]]) first[num_tasks++] = i;
    first[num_tasks] = num_rows;
#pragma omp parallel reduction(| : failed)
    {
        int64_t room = most * group;
        float *memory = malloc((room * (2 * dim + COLUMNS + 2) + dim * COLUMNS) * sizeof *memory);
        failed = !memory;
#pragma omp for collapse(2) schedule(dynamic, 4)
        for (int64_t task = 0; task < num_tasks; task++)
            for (int64_t head = 0; head < heads; head++) {
                if (!memory) continue;
                struct state s = {.queries = memory, .found = memory + room * dim, .weights = memory + 2 * room * dim};
                s.turned = s.weights + room * COLUMNS, s.highest = s.turned + dim * COLUMNS, s.total = s.highest + room;
                int64_t count = first[task + 1] - first[task];
                for (int64_t i = 0; i < count; i++) {
                    int64_t row = prompts ? order[first[task] + i] : first[task];
                    const float *asked = queries + (row * heads + head) * group * dim;
                    for (int64_t d = 0; d < group * dim; d++) s.queries[i * group * dim + d] = asked[d] * scale;
                }
                memset(s.found, 0, count * group * dim * sizeof *s.found);
                for (int64_t q = 0; q < count * group; q++) s.highest[q] = -INFINITY, s.total[q] = 0;
                if (prompts) {
                    int64_t slot = home[order[first[task]]];
                    read_slot(s, count * group, prompts, slot, lengths[slot], head, heads, dim);
                }
                for (int64_t i = 0; i < count; i++) {
                    int64_t row = prompts ? order[first[task] + i] : first[task];
                    int64_t own = (row * heads + head) * dim;
                    int64_t at = (rows->start[row] * heads + head * rows->capacity[row] + ends[row] - 1) * dim;
                    memcpy(rows->keys + at, keys + own, dim * sizeof *keys);
                    memcpy(rows->values + at, values + own, dim * sizeof *values);
                    read_slot(s, group, rows, row, ends[row], head, heads, dim);
                    float *result = results + own * group;
                    for (int64_t q = 0; q < group; q++)
                        for (int64_t d = 0; d < dim; d++) result[q * dim + d] = s.found[q * dim + d] / s.total[q];
                    s.queries += group * dim, s.found += group * dim, s.highest += group, s.total += group;
                }
            }
        free(memory);
    }
    free(first);
    return !failed;
}
