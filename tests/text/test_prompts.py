import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chats import small_tokenizer, with_chat

from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.text.prompts import named_prompt, prompt_from, prompts
from shortlist.text.rendering import Renderer

QUERY = Query("q", "what is [1] x")
BARE = Document("1", " two\nlines [2]")
TITLED = Document("2", "a text", title="A title")
DOCUMENTS = [BARE, TITLED]

RANK_LLM = "You are RankLLM, an intelligent assistant that can rank passages based on their relevancy to the query"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)

ZEPHYR_2024 = """\
I will provide you with 2 passages, each indicated by a numerical identifier []. Rank the passages based on their \
relevance to the search query: what is [1] x.

[1] two lines (2)
[2] Title: A title Content: a text
Search Query: what is [1] x.
Rank the 2 passages above based on their relevance to the search query. All the passages should be included and listed \
using identifiers, in descending order of relevance. The output format should be [] > [], e.g., [2] > [1], Only \
respond with the ranking results, do not say any word or explain."""

ZEPHYR_2026 = """\
I will provide you with 2 passages, each indicated by a numerical identifier []. Rank the passages based on their \
relevance to the search query: what is (1) x.
[1] two lines (2)
[2] Title: A title Content: a text
Search Query: what is (1) x.
Rank the 2 passages above based on their relevance to the search query. All the passages should be included and listed \
using identifiers, in descending order of relevance. The output format should be [] > [], e.g., [2] > [1], Answer \
concisely and directly and only respond with the ranking results, do not say any word or explain."""

RANK_R1 = """\
A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant first \
thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning process and \
answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., <think> reasoning process \
here </think> <answer> answer here </answer>."""

GROUPRANK = """\
Your task is to evaluate and rank documents based on how well they help answer the given query. Follow this evaluation \
priority:
1. PRIMARY: Usefulness & Helpfulness - Does the document provide actionable information, solutions, or direct answers \
that help address the user's needs?
2. SECONDARY: Relevance - Does the document contain information related to the query topic?

Evaluation Process:
1. First, identify the user's core intent and what kind of help they need from the query
2. For each document, assess:
   - How directly it addresses the user's intent
   - What actionable information or answers it provides
   - How much it helps solve the user's problem or need
3. Compare documents against each other to ensure proper ranking
4. Assign scores that reflect the relative usefulness ranking

Scoring Scale (0-10):
- 9-10: Extremely helpful, directly answers the query with actionable information
- 7-8: Very helpful, provides substantial useful information for the query
- 5-6: Moderately helpful, contains some useful information but incomplete
- 3-4: Minimally helpful, limited useful information despite topic relevance
- 1-2: Barely helpful, mentions related topics but provides little useful information
- 0: Not helpful at all, cannot assist with answering the query
"""

E2RANK = (
    "Given a web search query and some relevant documents, rerank the documents that answer the query:\nDocuments:\n"
)

PRP = """\
Given a query "what is [1] x", which of the following two passages is more relevant to the query?

Passage A: "two
lines [2]"

Passage B: "A title a text"

Output Passage A or Passage B:"""

SETWISE = """\
Given a query "what is [1] x", which of the following passages is the most relevant one to the query?

Passage A: "two
lines [2]"

Passage B: "A title a text"

Output only the passage label of the most relevant passage:"""

FIND = "Please find information that are relevant to the following query in the paragraphs above."
ANSWER = "Please answer the following question based on the information in the paragraphs above."
ICR = "Here are some paragraphs:\n\n[1] two lines [2]\n\n[2] A title a text\n\n{}\n\nQuery: what is [1] x"
LLAMA_3 = (
    " Here are some paragraphs: \n\n[1] two lines [2] \n\n[2] A title a text \n\n" + FIND + " \n\nQuery: what is [1] x"
)

BLOCKRANK = """\
You will be given a query and a list of documents. Each document will be formatted as ID: <id> | CONTENT: <content> | \
END ID: <id>. You need to read carefully and understand all of them and your goal is to find all document(s) from the \
list that can help answer the query.
Query: what is [1] x

Documents:
ID: 0 | CONTENT: two
lines [2] | END ID: 0
ID: 1 | CONTENT: A title a text | END ID: 1
====== Now let's start! ======
Which document is most relevant to answer the query? Print out the ID of the document.
Query: what is [1] x
The following document(s) can help answer the query:"""

GRADES = (
    "3: the passage is devoted to the query and holds the exact answer.\n"
    "2: the passage holds some answer, but it is unclear, or hidden among other things.\n"
    "1: the passage is about the subject of the query, but does not answer it.\n"
    "0: the passage has nothing to do with the query."
)

GOLDEN: dict[str, list[tuple[str, str]]] = {
    "icr": [("user", ICR.format(FIND))],
    "icr-qa": [("user", ICR.format(ANSWER))],
    "icr-llama-3": [("user", LLAMA_3)],
    "core": [("user", ICR.format(FIND).replace("[1] two", "[document 1] two").replace("[2] A", "[document 2] A"))],
    "blockrank": [("user", BLOCKRANK)],
    "rank-zephyr": [("system", RANK_LLM), ("user", ZEPHYR_2024)],
    "rank-zephyr-2026": [("system", RANK_LLM), ("user", ZEPHYR_2026)],
    "rank-vicuna": [("system", VICUNA), ("user", ZEPHYR_2024.replace("[2] > [1]", "[4] > [2]"))],
    "first": [
        ("system", RANK_LLM),
        (
            "user",
            ZEPHYR_2024.replace("a numerical", "a alphabetical")
            .replace("[2] > [1]", "[B] > [A]")
            .replace("\n[1] ", "\n[A] ")
            .replace("\n[2] ", "\n[B] ")
            .replace("(2)", "[2]"),
        ),
    ],
    "first-2026": [
        ("system", RANK_LLM),
        (
            "user",
            ZEPHYR_2026.replace("a numerical", "an alphabetical")
            .replace("[2] > [1]", "[B] > [A]")
            .replace("\n[1] ", "\n[A] ")
            .replace("\n[2] ", "\n[B] "),
        ),
    ],
    "rankgpt": [
        (
            "system",
            "You are RankGPT, an intelligent assistant that can rank passages based on their relevancy to the query.",
        ),
        (
            "user",
            "I will provide you with 2 passages, each indicated by number identifier []. \n"
            "Rank the passages based on their relevance to query: what is [1] x.",
        ),
        ("assistant", "Okay, please provide the passages."),
        ("user", "[1] two lines [2]"),
        ("assistant", "Received passage [1]."),
        ("user", "[2] Title: A title Content: a text"),
        ("assistant", "Received passage [2]."),
        (
            "user",
            "Search Query: what is [1] x. \n"
            "Rank the 2 passages above based on their relevance to the search query. The passages should be listed in "
            "descending order using identifiers. The most relevant passages should be listed first. The output format "
            "should be [] > [], e.g., [1] > [2]. Only response the ranking results, do not say any word or explain.",
        ),
    ],
    "lrl": [
        (
            "user",
            "Sort the list PASSAGES by how good each text answers the QUESTION (in descending order of relevancy).\n"
            'PASSAGE1 = "two lines (2)"\n'
            'PASSAGE2 = "Title: A title Content: a text"\n'
            'QUESTION: "what is (1) x"\n'
            "PASSAGES: [PASSAGE1, PASSAGE2]\n"
            "Sort the PASSAGES by their relevance to the Query. The answer should be a sorted list of PASSAGE ids "
            "(e.g., [PASSAGE2, ..., PASSAGE1]). Do not include any additional words or explanations.\n"
            "SORTED_PASSAGES =",
        )
    ],
    "lit5": [
        (
            "user",
            "Search Query: what is [1] x Passage: [1] two\nlines [2] Relevance Ranking: "
            "Search Query: what is [1] x Passage: [2] A title a text Relevance Ranking: ",
        )
    ],
    "prp": [("user", PRP)],
    "prp-t5": [("user", PRP)],
    "setwise": [("user", SETWISE)],
    "setwise-t5": [("user", SETWISE)],
    "tourrank": [
        (
            "system",
            "You are an intelligent assistant that can compare multiple documents based on their relevancy to the "
            "given query.",
        ),
        (
            "user",
            "I will provide you with the given query and 2 documents. \n"
            "Consider the content of all the documents comprehensively and select the 1 documents that are most "
            "relevant to the given query: what is [1] x.",
        ),
        ("assistant", "Okay, please provide the documents."),
        ("user", "Document 1: two\nlines [2]"),
        ("assistant", "Received Document 1."),
        ("user", "Document 2: A title a text"),
        ("assistant", "Received Document 2."),
        (
            "user",
            "The Query is: what is [1] x.\n"
            "Now, you must output the top 1 documents that are most relevant to the Query using the following format "
            "strictly, and nothing else. Don't output any explanation, just the following format:\n"
            "Document 3, ..., Document 1",
        ),
    ],
    "iranker": [
        (
            "system",
            "You are a helpful assistant. You first thinks about the reasoning process in the mind and then provides "
            "the user with the answer.",
        ),
        (
            "user",
            " Here is a query: what is [1] x.\n"
            "And here are the candidate passages:\n"
            "passage 0: two\nlines [2]\n"
            "passage 1: A title a text\n\n"
            "Please think step by step according to the content of each passage and how well it supports or relates "
            "to the query. Select the least likely passage from the candidate list. Only return the passage ID "
            'corresponding to the excluded passage (e.g., "passage x"). You MUST choose one passage from the candidate '
            "list. You can not generate content that is not in the given candidate list. Show your work in <think> "
            "</think> tags. And return the final answer in <answer> </answer> tags.",
        ),
    ],
    "rank-r1": [
        ("system", RANK_R1),
        (
            "user",
            'Given the query: "what is [1] x", which of the following documents is most relevant?\n'
            "[1] two\nlines [2]\n"
            "[2] A title a text\n"
            "After completing the reasoning process, please provide only the label of the most relevant document to "
            "the query, enclosed in square brackets, within the answer tags. For example, if the third document is the "
            "most relevant, the answer should be: <think> reasoning process here </think> <answer>[3]</answer>.",
        ),
    ],
    "rank-r1-v0.2": [
        (
            "system",
            "You are RankLLM, an intelligent assistant capable of evaluating the relevancy of passages to a given "
            "query.",
        ),
        (
            "user",
            "You will be presented with a query, and a set of documents.\n\n"
            "Your task consists of the following step:\n\n"
            "1. Analyze the query: Carefully read the query and identify the core problem or question being asked.\n\n"
            "2. Analyze the documents: Thoroughly examine each document and briefly explain how each document is "
            "relevant or not relevant to the query.\n\n"
            "3. Find the most relevant document: Based on your analysis, select the most relevant document to the "
            "query from the set and briefly explain why.\n\n"
            "Important: Provide your analysis within the <think> </think> tags and answer only the label of the most "
            "relevant document, enclosed in square brackets, within the <answer> </answer> tags. For example, if the "
            "third document is the most relevant, your response should be:\n"
            "<think> Your analysis here </think>\n"
            "<answer>[3]</answer>\n\n"
            "Here is the query: what is [1] x\n\n"
            "Here are the documents:\n"
            "[1]: two\nlines [2]\n\n"
            "[2]: A title a text",
        ),
    ],
    "erank": [
        (
            "user",
            "Given a query and a document, please give a relevance score of 0 to 10.\n"
            "The goal or relevance definition is: Given a query, retrieval relevant passage.\n\n"
            "Here is the query:\nwhat is [1] x\n\n"
            "Here is the document:\ntwo\nlines [2]\n\n"
            "After thinking, directly choose a relevance score from [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10].\n"
            "- 0 represents completely not related.\n- 10 means perfectly related.\n\n"
            "Desired output format:\n"
            "<think> put your thinking here </think><answer> Only allows an integer here </answer>\n\n"
            "Your output:",
        )
    ],
    "prorank": [
        ("system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        (
            "user",
            "query: what is [1] x\ndocument: two\nlines [2]\nYou are a search relevance expert who evaluates how well "
            "documents match search queries. For each query-document pair, carefully analyze the semantic relationship "
            "between them, then provide your binary relevance judgment (0 for not relevant, 1 for relevant).\n"
            "Relevance:",
        ),
    ],
    "grouprank": [
        ("system", GROUPRANK),
        (
            "user",
            "I will provide you 2 documents, each indicated by a numerical identifier []. Score these documents based "
            "on their Usefulness and Relevance to the query.\n"
            "Query:\nwhat is [1] x\n\n"
            "Documents:\n"
            "[1]. two lines [2]\n\n"
            "[2]. A title a text\n\n\n\n"
            "## Final Output Format\n"
            "You must structure your response in exactly two parts: provide your brief reasoning process first, then "
            "output final scores in JSON format like below, with document IDs as string keys and integer scores as "
            "values for all 2 documents. \n"
            "The reasoning process and answer are enclosed within <reason> </reason> and <answer> </answer> tags, "
            "respectively. Do NOT output anything outside the specified tags. Follow this exact format:\n"
            "<reason> \n"
            "[Analyze each document's usefulness and relevance to the query, explaining your scoring rationale]\n"
            "</reason>\n"
            "<answer> \n"
            '```json\n{"[1]": 5, "[2]": 3, "[3]": 8}\n``` \n'
            "</answer>\n",
        ),
    ],
    "graded": [
        (
            "user",
            "How well does the passage answer the query? Choose one of these grades:\n"
            "3: it answers the query completely.\n"
            "2: it answers a part of the query.\n"
            "1: it is about the same subject, and answers nothing.\n"
            "0: it is about something else.\n\n"
            "Query: what is [1] x\n\n"
            "Passage: two lines [2]\n\n"
            "Reply with the grade alone, one digit.",
        )
    ],
    "judge": [
        (
            "user",
            "You assess search results. Decide how much of an answer to the query the passage holds. First think of "
            "what the person who typed the query wants to know. Then look at how well the passage meets that need, and "
            "at how far it can be trusted. Give one grade:\n"
            + GRADES
            + "\n\nQuery: what is [1] x\n\nPassage: two\nlines [2]\n\nReply with the grade alone, one digit.",
        )
    ],
    "judge-steps": [
        (
            "user",
            "You assess search results. Decide how much of an answer to the query the passage holds. The grades are:\n"
            + GRADES
            + "\n\nQuery: what is [1] x\n\nPassage: two\nlines [2]\n\nGo step by step. Say in one sentence what the "
            "person who typed the query wants to know. Say in one sentence how well the passage meets that need. Say "
            "in one sentence how far the passage can be trusted. Then end with the grade alone, one digit, between "
            "<answer> and </answer>.",
        )
    ],
    "aspects": [
        (
            "user",
            "Write 1 search queries, one per line. Each asks about another aspect of this question.\n\ntwo lines [2]",
        )
    ],
    "passage": [
        (
            "user",
            "Write a short passage, of about 60 words, that answers this question.\n\nQuestion: two lines [2]\n\n"
            "Passage:",
        )
    ],
    "tree-node": [
        (
            "user",
            "These texts are samples from one section of a library:\n\n[1] two lines [2]\n[2] A title a text\nDescribe "
            "in one to three sentences what can be found in this section: its subjects, names and kinds of facts, as "
            "exactly as the samples allow. Write the description alone.",
        )
    ],
    "tree-walk": [
        (
            "user",
            "A search goes through a library, section by section. Each entry below is a document, or describes a "
            "section by samples of what is in it.\n\nQuery: what is [1] x\n\n[1] two lines [2]\n[2] A title a text\n\n"
            "Grade each of the 2 entries from 0 to 10 by how likely it is that it answers the query, or that an answer "
            "is in its section. 10: certain. 5: possible. 0: no chance. Use the whole scale, so that better entries "
            "have higher grades.\nEnd with the grades of all entries as JSON between <answer> and </answer>, such as "
            '<answer>{"[1]": 5, "[2]": 0}</answer>.',
        )
    ],
    "queries": [("user", "Write 1 search queries that this document answers, one per line.\n\ntwo lines [2]")],
    "likelihood": [("user", "Document: two lines [2]\n\nA search query that this document answers:")],
    "likelihood-chat": [("user", "Write 1 search queries that this document answers, one per line.\n\ntwo lines [2]")],
    "likelihood-t5": [("user", "two\nlines [2]")],
    "context": [
        (
            "user",
            "Here are 2 documents, each behind its number.\n\n[1] two\nlines [2]\n\n[2] A title a text\n\n"
            "Query: what is [1] x\n\nWhich documents answer the query? Reply with all numbers in brackets, the best "
            "document first, such as [2] > [1], and nothing else.",
        )
    ],
    "summary": [
        (
            "user",
            "Shorten this document to at most 64 words. Keep what helps to tell whether it answers the query, and add "
            "nothing. Reply with the shorter text alone.\n\nQuery: what is [1] x\n\nDocument: two\nlines [2]",
        )
    ],
    "summary-alone": [
        (
            "user",
            "Shorten this document to at most 64 words. Keep what people could look for in it, and add nothing. Reply "
            "with the shorter text alone.\n\nDocument: two\nlines [2]",
        )
    ],
    "draft-answer": [("user", "Answer this question in one or two sentences, as well as you can.\n\ntwo\nlines [2]")],
    "jina-reranker-v3": [
        (
            "system",
            "You are a search relevance expert who can determine a ranking of the passages based on how relevant they "
            "are to the query. If the query is a question, how relevant a passage is depends on how well it answers "
            "the question. If not, try to analyze the intent of the query and assess how well each passage satisfies "
            "the intent. If an instruction is provided, you should follow the instruction when determining the "
            "ranking.",
        ),
        (
            "user",
            "I will provide you with 2 passages, each indicated by a numerical identifier. Rank the passages based on "
            "their relevance to query: what is [1] x\n"
            '<passage id="0">\ntwo\nlines [2]<|embed_token|>\n</passage>\n'
            '<passage id="1">\nA title a text<|embed_token|>\n</passage>\n'
            "<query>\nwhat is [1] x<|rerank_token|>\n</query>",
        ),
    ],
    "e2rank": [("user", f"{E2RANK}[1] two lines [2]\n[2] A title a text\nSearch Query: what is [1] x")],
    "e2rank-plain": [("user", f"{E2RANK}[1] two\nlines [2]\n[2] A title a text\nSearch Query: what is [1] x")],
    "e2rank-training": [("user", f"{E2RANK}[1] two\nlines [2]\n[2] A title a text\nQuery: what is [1] x<|endoftext|>")],
    "e2rank-readme": [
        (
            "user",
            f"{E2RANK}[1] two\nlines [2]<|endoftext|>\n[2] A title a text<|endoftext|>Search Query:what is [1] x",
        )
    ],
}
"""Prompt -> its messages about two documents or, for a grade, the first, as the models' authors send them."""


def test_every_prompt_has_golden_messages():
    assert GOLDEN.keys() == prompts().keys()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("name", GOLDEN)
def test_a_prompt_has_the_golden_messages(name: str, known: bool):
    prompt = named_prompt(name)
    documents = DOCUMENTS[: prompt.most_documents()]
    messages = Renderer(prompt, marked_tokenizer() if known else None).messages(QUERY, documents)
    assert [(message["role"], message["content"]) for message in messages] == GOLDEN[name]


def chatml(system: str, user: str) -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def turns(name: str) -> tuple[str, str]:
    (_, system), (_, user) = GOLDEN[name]
    return system, user


OWN_CHATS = {
    "rank-vicuna": "<s>{} USER: {} ASSISTANT:".format(*turns("rank-vicuna")),
    "iranker": chatml(*turns("iranker")) + "Let me solve this step by step.\n<think>",
    "prorank": chatml(*turns("prorank")),
    "jina-reranker-v3": chatml(*turns("jina-reranker-v3")) + "<think>\n\n</think>\n\n",
    "e2rank-plain": "<s>{}</s>".format(*(text for _, text in GOLDEN["e2rank-plain"])),
    "prp-t5": PRP,
    "likelihood": "<s>Document: two lines [2]\n\nA search query that this document answers:",
    "likelihood-t5": "two\nlines [2]",
    "setwise-t5": SETWISE,
    "icr-llama-3": f"<s><|start_header_id|>user<|end_header_id|>{LLAMA_3}<|eot_id|><|start_header_id|>assistant"
    "<|end_header_id|>",
}
"""Prompts with a conversation of their own, and their whole texts."""


def test_every_other_prompt_takes_the_chat_of_its_tokenizer():
    own = {name for name in prompts() if named_prompt(name).chat != "tokenizer"}
    assert own == OWN_CHATS.keys() | {"lit5"}


def marked_tokenizer() -> Any:
    tokenizer = small_tokenizer(None)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|embed_token|>", "<|rerank_token|>"]})
    return tokenizer


@pytest.mark.parametrize("name", OWN_CHATS)
def test_a_prompt_with_a_chat_of_its_own_has_the_golden_text(name: str):
    prompt = named_prompt(name)
    rendered = Renderer(prompt, marked_tokenizer()).render(QUERY, DOCUMENTS[: prompt.most_documents()])
    assert rendered.text == OWN_CHATS[name]


def test_the_marks_of_jina_are_behind_each_passage_and_the_query():
    tokenizer = marked_tokenizer()
    rendered = Renderer(named_prompt("jina-reranker-v3"), tokenizer).render(
        Query("q", "what<|rerank_token|> is x"), [Document("1", "some<|embed_token|> text"), Document("2", "")]
    )
    tokens = [tokenizer.decode(rendered.ids[place : place + 1]) for place in rendered.marks]
    assert tokens == ["<|embed_token|>", "<|embed_token|>", "<|rerank_token|>"]
    assert rendered.spans[0].stop == rendered.marks[0]
    assert "what is x<|rerank_token|>" in rendered.text
    assert "some text<|embed_token|>" in rendered.text


def test_a_tokenizer_without_the_marks_is_refused():
    with pytest.raises(UserError, match=r"has no token '<\|embed_token\|>'"):
        Renderer(named_prompt("jina-reranker-v3"), small_tokenizer())


def test_lit5_reads_each_passage_by_itself_and_loses_its_end():
    tokenizer = small_tokenizer(None)
    long = Document("2", "text " * 200)
    rendered = Renderer(named_prompt("lit5"), tokenizer).render(QUERY, [BARE, long])
    first, second = (rendered.ids[part] for part in rendered.inputs)
    text = "Search Query: what is [1] x Passage: [1] two\nlines [2] Relevance Ranking: "
    assert first == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert len(second) == 150
    assert second[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(second[:-1]).startswith("Search Query: what is [1] x Passage: [2] text text")
    assert rendered.decoder_ids == [tokenizer.pad_token_id]
    assert rendered.spans == rendered.inputs


def test_a_decoder_begins_with_passage_for_t5():
    tokenizer = small_tokenizer(None)
    for name in ("prp-t5", "setwise-t5"):
        renderer = Renderer(named_prompt(name), tokenizer)
        rendered = renderer.render(QUERY, DOCUMENTS)
        assert rendered.ids == [
            *tokenizer(rendered.text, add_special_tokens=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
        assert tokenizer.decode(rendered.decoder_ids[1:]) + " A" in ("Passage A", "Passage  A")
        assert rendered.decoder_ids[0] == tokenizer.pad_token_id
        assert len(renderer.label_ids(rendered, 2)) == 2


def test_a_thought_that_is_begun_belongs_to_the_answer():
    renderer = Renderer(named_prompt("iranker"), small_tokenizer(None))
    rendered = renderer.render(QUERY, DOCUMENTS)
    assert rendered.begins == "Let me solve this step by step.\n<think>"
    assert rendered.answer_tokens == 1024
    answer = rendered.begins + " passage 0 is good.</think> <answer>passage 1</answer>"
    assert named_prompt("iranker").parsed(answer, 2).scores == [0, -1]
    assert "unfinished" in named_prompt("iranker").parsed(rendered.begins + " passage 0", 2).malformed


def test_a_grade_is_read_from_the_logits_of_its_digit():
    renderer = Renderer(named_prompt("graded"), small_tokenizer())
    rendered = renderer.render(QUERY, [BARE])
    ids = renderer.label_ids(rendered, 1)
    assert [renderer.tokenizer.decode([token]) for token in ids] == ["0", "1", "2", "3"]


def test_the_number_to_choose_is_asked_for_and_expected():
    renderer = Renderer(named_prompt("tourrank"), small_tokenizer())
    documents = [Document(str(i), "x") for i in range(5)]
    assert renderer.render(QUERY, documents, most=3).text.count("the top 3 documents") == 1
    assert renderer.render(QUERY, documents).text.count("the top 2 documents") == 1
    assert renderer.prompt.parsed("Document 3, Document 1", 5, most=2).malformed == ()
    assert renderer.prompt.parsed("Document 3, Document 1", 5, most=3).malformed == ("missing",)


def test_thinking_is_turned_off_where_the_answer_is_read_at_once():
    template = (
        "{{ messages[0].content }}{% if enable_thinking is not defined %}!{% elif not enable_thinking %}.{% endif %}"
    )
    tokenizer = with_chat(small_tokenizer(), template)
    assert Renderer(named_prompt("graded"), tokenizer).render(QUERY, [BARE]).text.endswith("one digit..")
    assert Renderer(named_prompt("prp"), tokenizer).render(QUERY, DOCUMENTS).text.endswith("Passage B:! Passage:")


def test_equal_prompts_have_equal_digests():
    values = yaml.safe_load(prompts()["prp"].read_text("utf-8"))
    prompt = prompt_from(values, name="other", where="here")
    assert prompt.digest() == named_prompt("prp").digest()
    assert prompt_from(values | {"between": "\n"}, name="prp", where="here").digest() != prompt.digest()
    digests = {named_prompt(name).digest() for name in prompts()}
    assert len(digests) == len(prompts())


def test_an_unknown_prompt_has_near_names():
    with pytest.raises(UserError, match=r"--prompt: unknown prompt 'rank-zephir': perhaps 'rank-zephyr'"):
        named_prompt("rank-zephir")


TURNS = [{"user": "{query} {documents}"}]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"asks": "order", "turns": TURNS, "parse": "numbers", "betwen": ""}, "unknown prompt setting 'betwen'"),
        ({"turns": TURNS}, "has no `asks`"),
        ({"asks": "order"}, "has no `turns`"),
        ({"asks": "order", "turns": [{"usr": "{documents}"}], "parse": "numbers"}, "unknown role of a turn 'usr'"),
        ({"asks": "order", "turns": [{"user": "{query}"}], "parse": "numbers"}, "documents are shown in 0 turns"),
        ({"asks": "order", "turns": [{"user": "{documents} {doc}"}], "parse": "numbers"}, "unknown field 'doc'"),
        ({"asks": "order", "turns": TURNS, "labels": "{n}", "parse": "numbers"}, "unknown field 'n'"),
        ({"asks": "order", "turns": TURNS, "parse": "number"}, "unknown parse 'number': perhaps 'numbers'"),
        ({"asks": "order", "turns": TURNS, "parse": "numbers", "limit": "many words"}, "a limit is 'many words'"),
        ({"asks": "sort", "turns": TURNS, "parse": "numbers"}, "unknown question 'sort'"),
        ({"asks": "grade", "turns": TURNS, "parse": "grade"}, "asks for grades and names none"),
    ],
)
def test_a_prompt_that_cannot_work_is_one_line(values: dict[str, Any], said: str):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        prompt_from(values, name="mine", where="mine.yaml")
    assert str(error.value).startswith("mine.yaml: ")
    assert "\n" not in str(error.value)


def test_prompts_are_files_beside_the_code():
    assert all(isinstance(path, Path) and path.suffix == ".yaml" for path in prompts().values())
