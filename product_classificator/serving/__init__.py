"""Answers over HTTP: `app` (FastAPI) reads requests, `service` answers them, `batcher` computes many at once."""
