"""What many teams run: FastAPI in front of sentence-transformers, one request at a time through `encode`.

MODEL names the model folder. FastAPI runs the function in its threads, so requests are accepted while others compute.
"""

import os
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

app = FastAPI()
model = SentenceTransformer(os.environ["MODEL"], device="cpu")


class Asked(BaseModel):
    """As OpenAI's clients ask."""

    input: str | list[str]


@app.get("/ready")
def ready() -> dict[str, str]:
    """Loaded."""
    return {"status": "ready"}


@app.post("/v1/embeddings")
def embeddings(asked: Asked) -> dict[str, Any]:
    """Vectors of texts."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    vectors = model.encode(texts, normalize_embeddings=True)
    return {"data": [{"index": i, "embedding": vector.tolist()} for i, vector in enumerate(vectors)]}
