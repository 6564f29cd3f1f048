"""Requests and responses over HTTP, as pydantic models.

Search has an API of its own. Embedding and reranking follow the APIs of other servers, so that their clients work.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag, model_validator
from pydantic_core import PydanticCustomError

from shortlist.data.where import LONGEST_FILTER
from shortlist.pipeline.wholes import AnswerUnit

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


_Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1, max_length=MAX_CHARACTERS)]
ModelName = Annotated[str | None, Field(description="Ignored: there is one model here.")]
Ignored = Annotated[Any, Field(description="Ignored: it changes no result.")]


class Asked(BaseModel):
    """A request that may have no other fields, as an ignored one would mislead.

    A field that is null asks for nothing.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _own_fields(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        for name, value in given.items():
            if name not in cls.model_fields and value is not None:
                message = f"not a field that is supported here; this takes {', '.join(cls.model_fields)}"
                raise PydanticCustomError("unknown_field", "{message}", {"message": message, "name": ascii(name)[1:-1]})
        return {name: value for name, value in given.items() if name in cls.model_fields}


class TextObject(BaseModel):
    """A document as an object, as Cohere's and Jina's clients may send it."""

    text: Text


class SearchOptions(Asked):
    """Options that every search takes."""

    k: int = Field(10, ge=1, le=MAX_K, description="Results per query.")
    depth: int | None = Field(
        None, ge=1, le=MAX_DEPTH, description="Candidates that the first reranker reads; by default what it says."
    )
    first_stage: str | None = Field(None, description="What finds the candidates; by default what the steps say.")
    rerank: bool | None = Field(None, description="Whether rerankers read them; by default if there are any.")
    where: Annotated[str, StringConstraints(max_length=LONGEST_FILTER)] | None = Field(
        None, description="A filter over the documents' metadata, such as year >= 2020 and lang = 'de'."
    )
    answer: AnswerUnit = Field("chunks", description="`documents`: whole documents, each for its best chunk.")
    explain: bool = Field(False, description="Tell what every step made of each result, and how long it took.")


class SearchLink(SearchOptions):
    """A search that is an address."""

    q: QueryText = Field(description="One question.")


class SearchRequest(SearchOptions):
    """A search, with either `query` or `queries`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in ("query", "queries")]})

    query: QueryText | None = Field(None, description="One question.")
    queries: Annotated[list[QueryText], Field(min_length=1, max_length=MAX_QUERIES)] | None = Field(
        None, description="Several questions, each answered by itself."
    )

    @property
    def texts(self) -> list[str]:
        """The queries, however they were given."""
        return [self.query] if self.query is not None else self.queries or []


class StepPlace(BaseModel):
    """Rank and score that a step gave a document."""

    rank: int
    score: float
    moved: int | None = Field(None, description="Ranks up, or below 0 down, from the list that the step read.")


class TextPiece(BaseModel):
    """A word of the query within a text to show, or what lies between two."""

    text: str
    found: bool = False


class WarmTextPiece(BaseModel):
    """A word with its best similarity to the query's tokens, or what lies between words."""

    text: str
    similarity: float | None = None


class WeightedTerm(BaseModel):
    """A term of a sparse model's vocabulary with its weight."""

    term: str
    weight: float


class SearchResult(BaseModel):
    """A document that was found."""

    rank: int
    doc_id: str
    score: float = Field(description="That of the last step.")
    title: str
    text: str
    url: str
    chunk: str | None = Field(None, description="The chunk whose text this is; with `answer: documents`.")
    metadata: dict[str, Any] = Field({}, description="The document's other fields, as they are in the collection.")
    stages: dict[str, StepPlace] | None = Field(None, description="Its place by step; with `explain`.")
    truncated: bool | None = Field(None, description="A reranker has not read all of it; with `explain`.")
    heading: list[TextPiece] | None = Field(None, description="The title, or id, in pieces; with `explain`.")
    passage: list[TextPiece] | None = Field(None, description="The part of the text that matches; with `explain`.")
    warmth: list[WarmTextPiece] | None = Field(
        None, description="How well its words match, where late interaction searches; with `explain`."
    )
    terms: list[WeightedTerm] | None = Field(
        None, description="The query's terms that it has, with their weights in it; with `explain`."
    )


class SearchAnswer(BaseModel):
    """Results for one query."""

    query: str
    results: list[SearchResult]
    milliseconds: dict[str, float] | None = Field(None, description="By step; with `explain`.")
    truncated: bool | None = Field(None, description="A retriever has not read all of the query; with `explain`.")
    terms: list[WeightedTerm] | None = Field(
        None, description="The query's terms, the heaviest first, where a sparse model searches; with `explain`."
    )


class SearchResponse(BaseModel):
    """One answer per query, in the order of the queries."""

    answers: list[SearchAnswer]
    milliseconds: float | None = Field(None, description="For the whole request, in the server; with `explain`.")


class EmbeddingsRequest(Asked):
    """OpenAI's request, with `input_type` to choose between the retriever's two prompts."""

    input: Text | Texts | _Ids | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        description="Texts, or the token ids that OpenAI's tokenizer makes of them."
    )
    model: str | None = Field(None, description="Says whose token ids those are; there is one model here.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Keep only so many numbers of each vector.")
    input_type: TextKind = "document"
    user: Ignored = None
    priority: Ignored = None


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


class RerankRequest(Asked):
    """Reranking request of Cohere, Jina, vLLM and infinity."""

    query: QueryText
    documents: Annotated[list[Text | TextObject], Field(min_length=1, max_length=MAX_TEXTS)]
    model: ModelName = None
    user: Ignored = None
    priority: Ignored = None
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


class Meta(BaseModel):
    """Metadata that Cohere's clients expect."""

    api_version: dict[str, str]
    billed_units: dict[str, int] = Field(default_factory=dict)


class RerankResponse(BaseModel):
    """Reranked documents, best first."""

    id: str
    model: str
    results: list[RerankResult]
    meta: Meta
    usage: Usage
    truncated: list[int] = Field(description="Documents that were too long and have been cut.")


class CohereEmbedRequest(Asked):
    """Embedding request of Cohere's second version."""

    texts: Texts
    input_type: Literal["search_query", "search_document"] = Field(description="Which of the retriever's prompts.")
    embedding_types: Annotated[list[Literal["float", "base64"]], Field(min_length=1)] = Field(["float"])
    output_dimension: int | None = Field(None, ge=1, description="Keep only so many numbers of each vector.")
    truncate: Literal["NONE", "END"] = Field("END", description="Cut what is too long at its end, or refuse it.")
    model: ModelName = None
    priority: Ignored = None


_Vectors = list[list[float]]


class CohereVectors(BaseModel):
    """Vectors in the forms that were asked for."""

    float: _Vectors | None = None
    base64: list[str] | None = None


class CohereEmbedResponse(BaseModel):
    """Embedding response of Cohere's second version, with the numbers of the texts that were cut."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: CohereVectors
    texts: list[str]
    meta: Meta
    truncated: list[int] = Field(description="Texts that were too long and have been cut.")


CutEnd = Annotated[
    Literal["right", "Right"] | None, Field(description="The end at which a text is cut; it is always the right one.")
]


class TeiEmbedRequest(Asked):
    """Embedding request of text-embeddings-inference."""

    inputs: Text | Texts
    truncate: bool | None = Field(None, description="Cut what is too long instead of refusing it.")
    truncation_direction: CutEnd = None
    model: ModelName = None
    normalize: bool = Field(True, description="Vectors of length 1; else as the model gives them.")
    prompt_name: TextKind | None = Field(None, description="Which of the retriever's prompts; by default `document`.")
    dimensions: int | None = Field(None, ge=1, description="Keep only so many numbers of each vector.")


class TeiRerankRequest(Asked):
    """Reranking request of text-embeddings-inference."""

    query: QueryText
    texts: Texts
    raw_scores: bool = Field(False, description="The model's own scores instead of values between 0 and 1.")
    return_text: bool = False
    truncate: bool | None = Field(None, description="Cut what is too long instead of refusing it.")
    truncation_direction: CutEnd = None
    model: ModelName = None


TEI, COHERE = "of text-embeddings-inference", "of Cohere"


def _rerank_api(given: Any) -> str | None:
    if isinstance(given, dict):
        return COHERE if "documents" in given else TEI
    return COHERE if isinstance(given, RerankRequest) else TEI if isinstance(given, TeiRerankRequest) else None


EitherRerankRequest = Annotated[
    Annotated[TeiRerankRequest, Tag(TEI)] | Annotated[RerankRequest, Tag(COHERE)], Discriminator(_rerank_api)
]
"""A request with `texts`, as text-embeddings-inference has them, or with `documents`, as the others have them."""


class TeiRank(BaseModel):
    """A text with its score."""

    index: int
    score: float
    text: str | None = None


class ScoreRequest(Asked):
    """Scoring request of vLLM: one text against several, or pair by pair."""

    text_1: QueryText | Annotated[list[QueryText], Field(min_length=1, max_length=MAX_TEXTS)]
    text_2: Text | Texts
    model: ModelName = None
    user: Ignored = None
    priority: Ignored = None


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


class ServedModel(BaseModel):
    """A model in OpenAI's list."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "shortlist"


class Models(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ServedModel]


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

    status: Literal["alive", "ready", "stale", "changed", "draining", "broken"]
    message: str | None = Field(default=None, description="What to do about it.")


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
