"""The labelling app: pages and a JSON API over a feedback database."""
