"""The names that others may use: a change here is a change of the interface, and belongs in CHANGELOG.md."""

import ast
from pathlib import Path

import pytest

import shortlist

ROOT = Path(__file__).parents[1] / "shortlist"
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
STAGE = {"Config", "run"}
"""What every stage has: its module's docstring says what it does, and `Config` says it field by field."""

NAMES = {
    "shortlist": "HOMES",
    "shortlist.cli": "EXPECTED MODULES STAGES main",
    "shortlist.compare": "COSTS Config FILES costs draw_pareto run",
    "shortlist.config": "from_settings load_yaml parse to_flags",
    "shortlist.convert": "COLLECTION Config PICKLED SHARD_SIZE Training judgements read run",
    "shortlist.data.beir": "BeirSet CQADUPSTACK SETS SPLITS beir_set is_whole parts_of shares_ids",
    "shortlist.data.checks": "ALL check_split judged no_qrels pick split_of",
    "shortlist.data.collections": "Collection FolderCollection open_collection",
    "shortlist.data.export": (
        "Documents GROUPS_AT_ONCE LAYOUTS Layout flag_embedding tevatron tevatron_old triplets "
        "write_tevatron_corpus write_training"
    ),
    "shortlist.data.figures": "COLORS STYLE svg write_svg",
    "shortlist.data.files": (
        "atomic_folder atomic_write folder_bytes open_bytes open_text optional_json read_json sha256 write_json"
    ),
    "shortlist.data.formats": (
        "SPACE add_judgement corpus_offsets document_parser documents_at full_text is_integer is_number read_corpus "
        "read_qrels read_queries split_columns to_document to_judgement to_query write_corpus write_qrels "
        "write_queries"
    ),
    "shortlist.data.groups": (
        "GroupSource contents groups_from_qrels open_groups read_groups read_passages write_groups"
    ),
    "shortlist.data.hub": "AT_ONCE HubCollection IrdsCollection TIMEOUT_SECONDS hub_rows irds_document irds_query",
    "shortlist.data.ids": "DocIds LINE_END",
    "shortlist.data.ir": "scored_docs to_documents to_qrels to_queries to_run",
    "shortlist.data.judgements": "Judgements run_names",
    "shortlist.data.layouts": "Files MSMARCO Names OURS find_files",
    "shortlist.data.lines": (
        "MalformedError OnBad count_lines numbered_lines parse_json parse_lines parse_records read_lines refuse to_text"
    ),
    "shortlist.data.manifest": (
        "FORMAT Job NOT_INPUTS commit identity ms_per_query read_manifest reopen stages start_job"
    ),
    "shortlist.data.pickles": "ALLOWED START is_pickle read_embeddings",
    "shortlist.data.runs": (
        "EXPECTED FORMS MIX QUERY_ID RunColumns SHORT StoredRun TREC Ties UNUSED open_run read_run read_run_columns "
        "run_columns write_run"
    ),
    "shortlist.data.scores": "COLUMNS FORMAT ScoreLog",
    "shortlist.data.seen": "BUCKETS Record Seen checked distinct",
    "shortlist.data.snapshots": "AT_ONCE Known compact document_keys missing pin read_known renew",
    "shortlist.data.triplets": (
        "Example ID_BYTES Layout NEGATIVE POSITIVE QUERY collect layout_of read_documents read_examples text_id"
    ),
    "shortlist.data.vectors": (
        "Block DEAD DTYPES KEY_BYTES Snapshot VectorReader VectorWriter count_rows damage finished_shards "
        "read_snapshot remove_shard shard_file to_rows"
    ),
    "shortlist.demo": "Config DEPTH EXAMPLES HITS explain make_recipe run show_examples",
    "shortlist.diagnose": (
        "Config Measurer SNIPPET Sizes TEXTS_AT_ONCE Task compare_queries count_fates diagnose find_duplicates "
        "find_unjudged run"
    ),
    "shortlist.diagnose.printing": "print_diagnosis",
    "shortlist.encode": (
        "Config Encoder LISTED MEASURED_SECONDS Part SAMPLE Shard Speed claim compare contract_of embed_part encode "
        "fill forecast measure open_retriever parts run write"
    ),
    "shortlist.engine": "Engine TRIES Wait joined spread",
    "shortlist.errors": "UserError unknown",
    "shortlist.evaluate": "Config difference run write_values",
    "shortlist.export": "Config Model Target WRITERS run",
    "shortlist.export.card": "CARD SETTINGS card write_card",
    "shortlist.export.onnx": "FILE Graph INPUTS OUTPUTS write_onnx",
    "shortlist.export.push": "Config NOT_PUSHED files run upload",
    "shortlist.export.tokenizer": "DOCUMENT_FIELDS PIECE TEXTS for_pairs for_single_texts",
    "shortlist.export.tools": (
        "POOLING_FLAGS TRAINING_LOG save_tokenizer write_cross_encoder write_merged write_peft "
        "write_sentence_transformer"
    ),
    "shortlist.functions": "Config INSTALLED STANDARD identity_of run without_copies write_sources",
    "shortlist.functions.fingerprints": "BYTES fingerprint read_fingerprints write_fingerprints",
    "shortlist.functions.overlap": (
        "COMMENT_OR_STRING NEAR Overlap SHINGLE WORD body_words normalized quiet_parse shingles"
    ),
    "shortlist.functions.sources": (
        "COPIES Function MAX_BYTES NOT_STANDARD NO_SENTENCE OURSELVES_AND_BACKPORTS SENTENCE_END Source TESTS "
        "build_test collect definitions find_sources first_sentence hold_out installed_packages is_trivial "
        "keep_apart module_of parse_functions read_functions sample source_without_docstring standard_library "
        "unambiguous wheel_sources write_pairs write_train"
    ),
    "shortlist.functions.wheels": (
        "ALLOWED ALLOWED_BESIDE AT_ONCE GLIBCS NAMES ONE_PYTHON PIN PLATFORMS Pin check_licence download licence_of "
        "metadata_of read_pins"
    ),
    "shortlist.fuse": "Config STEPS choose_weights fuse_first one_by_one run",
    "shortlist.index": "Config IN_DATABASES Index Kind VectorIndex build given parse_parameters run",
    "shortlist.index.analysis": "ANALYSERS Analyser LANGUAGES STOP_WORDS code english snowball whitespace",
    "shortlist.index.ann": "AnnIndex Done LEAST_READ LISTS QUERIES_AT_ONCE STORED THREAD_PRODUCTS",
    "shortlist.index.bm25": "BM25Index FILES VOCABULARY",
    "shortlist.index.check": "ALONE DEPTHS Findings QUERIES check compare recall",
    "shortlist.index.flat": (
        "CANDIDATES_BYTES EVEN FEWEST_RESCORED FlatIndex Found NARROW_NUMBERS PIECES Product RESCORED_BYTES SAMPLED "
        "SAMPLE_BYTES SIZES ScanShards Sizes THREADS Tile check_queries narrow"
    ),
    "shortlist.index.forecast": "FIRST_DOCS MEASURED_SECONDS PART_DOCS ROW_BYTES forecast",
    "shortlist.index.kinds": "Opening REFINE build_index exact_index holds_segments made_by open_index",
    "shortlist.index.lance": (
        "LanceIndex MOST_TABLES MOST_WORDS PROBES QUERIES_AT_ONCE REFINE ROWS_AT_ONCE RUNS_AT_ONCE"
    ),
    "shortlist.index.leaders": "FEWEST_WAITING Leaders NOTHING",
    "shortlist.index.parameters": (
        "BLOCK_BYTES LEAST_PER_LIST MOST_LISTS NAMES PQ_CENTROIDS Parameters SAMPLE_BYTES SCALAR_BITS Sizes "
        "automatic check_kind check_parameters memory_and_disk"
    ),
    "shortlist.index.pgvector": "EF_SEARCH MOST_EF_SEARCH PgVectorIndex ROWS_AT_ONCE",
    "shortlist.index.postgres": "CONNECT_SECONDS Database HNSW_DIMS connected hnsw_terms plain_errors without_password",
    "shortlist.index.postings": "BLOCK_TOKENS Postings PostingsSorter",
    "shortlist.index.scattered": "PIECES ScatteredIndex",
    "shortlist.index.segmented": "SegmentIndex best_of_each",
    "shortlist.init": "Config new_llama run",
    "shortlist.inspect": "Config DOCUMENT QUERY describe inspect run",
    "shortlist.integrations": "Passage best_first metadata_of not_installed",
    "shortlist.integrations.langchain": "PipelineRetriever RerankerCompressor RetrieverEmbeddings",
    "shortlist.integrations.llama_index": "PipelineRetriever RerankerPostprocessor RetrieverEmbedding",
    "shortlist.integrations.mteb": "Batch RerankerCrossEncoder RetrieverEncoder",
    "shortlist.lengths": "Config QUANTILES TEXTS_AT_ONCE TOKENIZER_FILES count draw run summarise",
    "shortlist.math.agreement": "Agreement NEIGHBOURS agreement kendall_tau",
    "shortlist.math.combination": "COMBINATIONS Combine Combined Values avgp maxp",
    "shortlist.math.exclusion": "count_own without_own",
    "shortlist.math.fates": "FATES fates",
    "shortlist.math.fusion": "FUSIONS Scale interpolate minmax reorder rrf weight_grid weighted zscore",
    "shortlist.math.histogram": "Histogram add_lengths mean_length quantile share_at_most shares",
    "shortlist.math.losses": "LOSSES Loss countable distillation infonce",
    "shortlist.math.measures": (
        "HIGHEST_GRADE JudgedHits MEASURES Measure Values average_precision expected_reciprocal_rank judged ndcg "
        "precision recall reciprocal_rank success"
    ),
    "shortlist.math.ordering": "strictly_decreasing",
    "shortlist.math.pareto": "frontier",
    "shortlist.math.pooling": "POOLINGS Pooling cls last mean",
    "shortlist.math.products": "Product ROWS float_product full_precision packing_is_right",
    "shortlist.math.quantize": "LARGEST from_int8 int8_product to_int8",
    "shortlist.math.sampling": "draw_negatives epoch_negatives interleave shortfall",
    "shortlist.math.scoring": (
        "Indices LAST_POSITION SIGNLESS Scores at_least best_of contenders from_keys recall_at reciprocal_ranks "
        "to_keys top_k top_keys"
    ),
    "shortlist.math.significance": "BATCH bootstrap_interval holm paired_t_test randomisation_test",
    "shortlist.math.smoothing": "running_mean",
    "shortlist.math.weighting": "bm25 length_penalty rarity",
    "shortlist.measure": (
        "INSTALLED_BY_SOME NO_INSTALLING OWN_PARAMETERS PROVIDER Values judged_hits judged_ranks parse_measures "
        "per_query"
    ),
    "shortlist.mine": "Config find_same_text fingerprint mine run taught",
    "shortlist.models.adapters": (
        "ADAPTER CONFIG LORAS Lora PICKLED PREFIX adapter_head adapter_weights add_lora base_name is_adapter "
        "merge_adapter parse_lora"
    ),
    "shortlist.models.backbone": (
        "apply_contract checkpoint_layers dequantize empty_backbone first_line hushed is_causal is_decoder "
        "load_backbone load_classifier not_a_model pooled_states real_tokens see_both_ways"
    ),
    "shortlist.models.checkpoint": (
        "FILES QUANTIZATION Trainable WEIGHTS any_contract language_model_to_train load_reranker load_retriever "
        "local_folder model_identity num_parameters reranker_contract reranker_to_train retriever_contract "
        "retriever_to_train save_model saved_names saved_weights tokenizer_of weight_files"
    ),
    "shortlist.models.embed": (
        "CPU_TOKENS Done GPU_TOKENS Pair Precision TEXTS_AT_ONCE TokenIds compact_ids default_token_budget "
        "embed_documents embed_queries for_inference pick_device run_batches run_model score_pairs stream_scores"
    ),
    "shortlist.models.fused": "FusedLayer FusedNorm PARTS fuse_layers",
    "shortlist.models.heads": "HEAD OUTPUT_EMBEDDING answer_head check_tied find_head is_classifier one_label",
    "shortlist.models.language": "LanguageModel ROWS next_tokens",
    "shortlist.models.linear": (
        "ACTIVATIONS EXACTNESS FusibleLinear MIN_FEATURES MakesLinear PackedGatedMLP PackedLinear PlainLinear ROWS "
        "bf16_pays finish last_mlp_only_at pack_linears packing_is_right packing_pays stand_in"
    ),
    "shortlist.models.published": (
        "ACTIVATIONS KNOWN MODULES POOLINGS UNLIMITED backbone_folder check_layout dense_layers published_contract"
    ),
    "shortlist.models.quantized": "Int8Linear quantize_linears",
    "shortlist.models.reranker": "AnyReranker CrossEncoder Reranker Scores new_head",
    "shortlist.models.retriever": "Activation Dense Retriever",
    "shortlist.models.shipped": "PAIR shipped_folder shipped_name",
    "shortlist.models.training_linear": (
        "FastLinear FastLora FastNorm SparseEmbedding draw_kept products_are_right speed_up_training"
    ),
    "shortlist.pipeline": "Answer DEPTH FirstStage Pipeline Place Result Scores",
    "shortlist.progress": (
        "Advance PLAIN_SECONDS duration forget_peak leads paced peak_bytes progress resident_bytes say size track"
    ),
    "shortlist.recipe": "Config OUTPUTS Step plan run run_recipe run_steps",
    "shortlist.records": "Document Group Hit Qrels Query Run as_documents as_queries",
    "shortlist.report": (
        "Config Output SECTIONS find_outputs run sections show_comparison show_diagnosis show_lengths "
        "show_manifests show_results show_table show_training"
    ),
    "shortlist.report.html": "POLICY drawing folded heading page paragraph table",
    "shortlist.rerank": (
        "BEST_FIRST Config PAIRS_AT_ONCE Pace Scored Scorer check_finite compare contract_of fill log_path "
        "mean_ndcg read rerank reranked run score"
    ),
    "shortlist.rerank.candidates": "Candidates Chunk LISTED",
    "shortlist.search": (
        "Config DEMO_FOLDER Dense EncodesQueries HITS_AT_ONCE HYBRID_DEPTH Hybrid IGNORED Part SNIPPET Second kind_of "
        "open_index open_parts open_second print_hits run search"
    ),
    "shortlist.serve": "Config FEWEST_KEY_CHARACTERS PACKED SWITCH_SECONDS check open_app open_service read_key run",
    "shortlist.serve.app": "ERRORS NO_JSON create_app",
    "shortlist.serve.batcher": "ALIKE Batcher Finished Item LOOK_AHEAD Model PACE Queue SMALLER TRIMMED Work",
    "shortlist.serve.deploy": "Front Replica Reply SCOPE SPARE application serve_on_ray",
    "shortlist.serve.gate": "FullError Gate Limits SHARE Ticket TooLargeError",
    "shortlist.serve.metrics": "BUCKETS HELP Labels Metrics render",
    "shortlist.serve.protection": (
        "Answer App HEADERS LOOPBACK Log Message OPEN Protection RETRY_SECONDS Receive Send explained problem replay"
    ),
    "shortlist.serve.schema": (
        "Embedding EmbeddingsRequest EmbeddingsResponse ErrorBody ErrorResponse Info Kind MAX_CHARACTERS MAX_DEPTH "
        "MAX_K MAX_QUERIES MAX_TEXTS ModelInfo QueryText RerankMeta RerankRequest RerankResponse RerankResult Score "
        "ScoreRequest ScoreResponse SearchAnswer SearchRequest SearchResponse SearchResult StagePlace Status "
        "TeiEmbedRequest TeiRank TeiRerankRequest Text TextObject Texts Usage"
    ),
    "shortlist.serve.server": (
        "FIRST_SECONDS KEEP_SECONDS LINGER_SECONDS MakeApp RESTARTS Server address bind serve serve_in_processes"
    ),
    "shortlist.serve.service": "FieldError Read Service TOKENIZING",
    "shortlist.table": "Cells Column Config Table draw markdown our_rows published_tables read_table run",
    "shortlist.text.batching": "pad token_batches windows",
    "shortlist.text.contract": (
        "CONTRACTS DOCUMENT_FIELDS FIELDS InputContract Inputs KINDS NO_TEXT SPECIAL TEXTS_AT_ONCE Tokenizer fill "
        "named_contract turn"
    ),
    "shortlist.text.proof": "TOKEN WORDS prove",
    "shortlist.text.segments": (
        "DOCUMENTS_AT_ONCE FEWEST_TOKENS Segments cut document_segments named_segments pair_segments "
        "segment_contract segment_settings unused_settings whole_id"
    ),
    "shortlist.text.surroundings": "PROBES around_one around_two literal unescaped",
    "shortlist.text.tokenizer": "FILES PROBE from_sentencepiece has_tokenizer load_tokenizer train_bpe",
    "shortlist.train": "CANDIDATES TEMPERATURES run train",
    "shortlist.train.build": "adapted_model build_model collect_groups weights_dtype",
    "shortlist.train.examples": "Batch ahead batches check_groups draw_groups num_steps",
    "shortlist.train.forecast": "Forecast MOST_BATCHES MOST_TEXTS UNCUT forecast",
    "shortlist.train.gather": (
        "ALONE BUFFER OutOfMemory PATIENCE World gather_rows in_turn is_sharded join like on_any own_device shard "
        "sum_gradients whole within_memory"
    ),
    "shortlist.train.heldout": "CUTOFF Evaluation Heldout draw_heldout reranker_evaluation retriever_evaluation",
    "shortlist.train.log": "DRAWING LOG MEASURE MOST_POINTS Record TrainingLog draw_loss draw_records read_log",
    "shortlist.train.loop": "MAX_GRADIENT_NORM TOKENS fit learning_rate_factor new_optimizer",
    "shortlist.train.memory": "FOUR_BITS Memory Pass step_memory",
    "shortlist.train.resume": (
        "CHECKPOINTS MOMENTS STATE State checkpoints drop_checkpoints load_checkpoint load_weights save_checkpoint "
        "whole_weights"
    ),
    "shortlist.train.settings": "Config check",
    "shortlist.train.steps": (
        "Example Micro NOBODY Outcome Teaching backward compute_outputs deal language_example language_texts "
        "reranker_example retriever_example"
    ),
    "shortlist.verify": "Config damaged_shards misplaced repair run",
}


def module(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(("shortlist", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def body(path: Path) -> list[ast.stmt]:
    return ast.parse((ROOT / path).read_text("utf-8")).body


def public(statements: list[ast.stmt]) -> set[str]:
    """Names that a file defines at its top, imported and private ones left out, and type variables."""
    names: set[str] = set()
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_") and len(name) > 1}


def test_every_module_is_listed():
    assert {module(path) for path in FILES if public(body(path))} == NAMES.keys()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_public_names_are_those_listed(path: Path):
    assert sorted(public(body(path))) == NAMES.get(module(path), "").split()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_public_says_what_it_is(path: Path):
    for node in body(path):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node) or node.name in STAGE, node.name


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_setting_says_what_it_does(path: Path):
    for node in body(path):
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            assert [type(field) for field in node.body] == [ast.AnnAssign, ast.Expr] * (len(node.body) // 2)


@pytest.mark.parametrize("path", [path for path in FILES if body(path)], ids=str)
def test_every_module_says_what_it_is_about(path: Path):
    assert ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8"))) or path == Path("__init__.py")


PUBLIC = (
    "Answer BM25Index CrossEncoder Document FlatIndex Group Hit InputContract Pipeline Query Reranker Result Retriever "
    "UserError VectorReader VectorWriter open_collection open_groups per_query read_qrels read_run rrf write_corpus "
    "write_groups write_qrels write_queries write_run"
)
"""What `import shortlist` gives."""


def test_the_package_itself_gives_the_names_listed():
    assert sorted(shortlist.__all__) == PUBLIC.split()
    assert {name for name in PUBLIC.split() if getattr(shortlist, name).__name__ != name} == set()
    assert set(PUBLIC.split()) <= set(dir(shortlist))


def test_type_checkers_see_the_same_names():
    [block] = [node for node in body(Path("__init__.py")) if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: f"shortlist.{home}" for home, names in shortlist.HOMES.items() for name in names.split()}


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Retreiver'"):
        _ = shortlist.Retreiver
