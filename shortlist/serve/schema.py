"""Requests and responses over HTTP, as pydantic models.

Search has an API of its own. Embedding and reranking follow the APIs of other servers, so that their clients work.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_TEXTS = 2048
"""Most texts in one request."""
MAX_QUERIES = 128
"""Most queries in one search."""
MAX_CHARACTERS = 262_144
"""Most characters of a text; a model's input contract limits the part it reads further."""
MAX_K = 1000
MAX_DEPTH = 1000

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_CHARACTERS)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
TextKind = Literal["query", "document"]


class TextObject(BaseModel):
    """A document as an object, as Cohere's and Jina's clients may send it."""

    text: Text


class SearchRequest(BaseModel):
    """A search, with either `query` or `queries`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"oneOf": [{"required": [name]} for name in ("query", "queries")]}
    )

    query: QueryText | None = Field(None, description="One question.")
    queries: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_QUERIES)] | None = Field(
        None, description="Several questions, each answered by itself."
    )
    k: int = Field(10, ge=1, le=MAX_K, description="Results per query.")
    depth: int | None = Field(
        None, ge=1, le=MAX_DEPTH, description="Candidates that the first reranker reads; by default what it says."
    )
    first_stage: str | None = Field(None, description="What finds the candidates; by default what the steps say.")
    rerank: bool | None = Field(None, description="Whether rerankers read them; by default if there are any.")
    explain: bool = Field(False, description="Tell what every step made of each result, and how long it took.")

    @property
    def texts(self) -> list[str]:
        """The queries, however they were given."""
        return [self.query] if self.query is not None else self.queries or []


class StepPlace(BaseModel):
    """Rank and score that a step gave a document."""

    rank: int
    score: float
    moved: int | None = Field(None, description="Ranks up, or below 0 down, from the list that the step read.")


class SearchResult(BaseModel):
    """A document that was found."""

    rank: int
    doc_id: str
    score: float = Field(description="That of the last step.")
    title: str
    text: str
    url: str
    stages: dict[str, StepPlace] | None = Field(None, description="Its place by step; with `explain`.")
    truncated: bool | None = Field(None, description="A reranker has not read all of it; with `explain`.")


class SearchAnswer(BaseModel):
    """Results for one query."""

    query: str
    results: list[SearchResult]
    milliseconds: dict[str, float] | None = Field(None, description="By step; with `explain`.")
    truncated: bool | None = Field(None, description="A retriever has not read all of the query; with `explain`.")


class SearchResponse(BaseModel):
    """One answer per query, in the order of the queries."""

    answers: list[SearchAnswer]


class EmbeddingsRequest(BaseModel):
    """OpenAI's request, with `input_type` to choose between the retriever's two prompts."""

    input: Text | Texts
    model: str | None = Field(None, description="Ignored: there is one model here.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Keep only so many numbers of each vector.")
    input_type: TextKind = "document"
    user: str | None = Field(None, description="Ignored.")


class Embedding(BaseModel):
    """A vector: numbers, or their float32 bytes in base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Number of tokens read, prompts included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    """OpenAI's response, with the numbers of the inputs that were cut."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage
    truncated: list[int] = Field(description="Inputs that were too long and have been cut.")


class RerankRequest(BaseModel):
    """Reranking request of Cohere and Jina."""

    query: QueryText
    documents: Annotated[list[Text | TextObject], Field(min_length=1, max_length=MAX_TEXTS)]
    model: str | None = Field(None, description="Ignored: there is one model here.")
    top_n: int | None = Field(None, ge=1, description="Results that are wanted.")
    return_documents: bool | None = Field(None, description="Repeat the texts in the results.")
    max_tokens_per_doc: int | None = Field(None, ge=1, description="Cut each document to so many tokens first.")

    @property
    def texts(self) -> list[str]:
        """The documents, however they were given."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


class RerankResult(BaseModel):
    """A document with its score, between 0 and 1."""

    index: int
    relevance_score: float
    document: TextObject | None = None


class RerankMeta(BaseModel):
    """Metadata that Cohere's clients expect."""

    api_version: dict[str, str]
    billed_units: dict[str, int] = Field(default_factory=dict)


class RerankResponse(BaseModel):
    """Reranked documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    meta: RerankMeta
    usage: Usage
    truncated: list[int] = Field(description="Documents that were too long and have been cut.")


class TeiEmbedRequest(BaseModel):
    """Embedding request of text-embeddings-inference."""

    inputs: Text | Texts
    truncate: bool | None = Field(None, description="Cut what is too long instead of refusing it.")
    normalize: bool = Field(True, description="Vectors of length 1; else as the model gives them.")
    prompt_name: TextKind | None = Field(None, description="Which of the retriever's prompts; by default `document`.")
    dimensions: int | None = Field(None, ge=1, description="Keep only so many numbers of each vector.")


class TeiRerankRequest(BaseModel):
    """Reranking request of text-embeddings-inference."""

    query: QueryText
    texts: Texts
    raw_scores: bool = Field(False, description="The model's own scores instead of values between 0 and 1.")
    return_text: bool = False
    truncate: bool | None = Field(None, description="Cut what is too long instead of refusing it.")


class TeiRank(BaseModel):
    """A text with its score."""

    index: int
    score: float
    text: str | None = None


class ScoreRequest(BaseModel):
    """Scoring request of vLLM: one text against several, or pair by pair."""

    text_1: QueryText | Annotated[list[QueryText], Field(min_length=1, max_length=MAX_TEXTS)]
    text_2: Text | Texts
    model: str | None = Field(None, description="Ignored: there is one model here.")


class Score(BaseModel):
    """The score of one pair, between 0 and 1."""

    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(BaseModel):
    """Scoring response of vLLM."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: Usage


class ErrorBody(BaseModel):
    """An error: its kind, a message, and the field that is wrong."""

    message: str
    type: str
    field: str | None = Field(None, description="The field of the request that is wrong.")


class ErrorResponse(BaseModel):
    """Body of every response with an error status."""

    error: ErrorBody


class Status(BaseModel):
    """Health of the server."""

    status: Literal["alive", "ready", "draining", "broken"]


class ModelInfo(BaseModel):
    """A model with its input contract."""

    name: str
    contract: dict[str, Any]
    dim: int | None = None


class Info(BaseModel):
    """Served models and steps, and the limits of requests."""

    version: str
    retriever: ModelInfo | None = None
    reranker: ModelInfo | None = None
    first_stages: list[str] = Field(description="Steps that can be asked for as first stage, the best last.")
    rerankers: list[str] = Field(description="Steps behind them, in their order.")
    limits: dict[str, int | float]
