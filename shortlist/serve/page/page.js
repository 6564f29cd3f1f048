"use strict";

const at = (id) => document.getElementById(id);
let key = ""; // never stored: a new page asks for it again
let running = null;
const WORDS = new Set("and or not in is like ilike between null true false has".split(" ")); // which a filter reads itself
const FEW = 8; // values of a field that can be clicked

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text; // texts are never HTML
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

async function ask(path, body) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  running?.abort();
  running = new AbortController();
  const options = { method: body ? "POST" : "GET", headers, signal: running.signal };
  if (body) options.body = JSON.stringify(body);
  const answer = await fetch(path, options);
  const content = await answer.json();
  if (answer.ok) return content;
  at("locked").hidden = answer.status !== 401;
  if (answer.status === 401) at("key").focus();
  throw new Error(content.error.message);
}

function explain(error) {
  if (error.name === "AbortError") return; // a newer search has begun
  at("status").textContent = "";
  at("error").textContent = error instanceof TypeError ? "The server does not answer." : error.message;
  at("error").hidden = false;
}

function offer(info) {
  at("locked").hidden = true;
  const chosen = new URLSearchParams(location.search).get("stage");
  for (const stage of info.first_stages) {
    const button = element("input", "", { type: "radio", name: "stage", value: stage });
    button.checked = stage === (info.first_stages.includes(chosen) ? chosen : info.first_stages.at(-1));
    const label = element("label", "");
    label.append(button, ` ${stage}`);
    at("stages").append(label);
  }
  at("reranking").hidden = !info.rerankers.length;
}

function readLink() {
  const link = new URLSearchParams(location.search);
  at("query").value = link.get("q") ?? "";
  at("where").value = link.get("where") ?? "";
  at("rerank").checked = link.get("rerank") !== "0";
  if (link.has("k")) at("k").value = link.get("k");
  if (!at("k").value) at("k").value = "10";
  const stage = document.querySelector(`input[name="stage"][value="${CSS.escape(link.get("stage") ?? "")}"]`);
  if (stage) stage.checked = true;
}

function writeLink(asked) {
  const link = new URLSearchParams({ q: asked.query, stage: chosenStage().value, k: asked.k });
  link.set("rerank", asked.rerank ? "1" : "0");
  if (asked.where) link.set("where", asked.where);
  if (`?${link}` !== location.search) history.pushState(null, "", `?${link}`);
  document.title = `${asked.query} - Search`;
}

function chosenStage() {
  return document.querySelector('input[name="stage"]:checked');
}

function wish() {
  const asked = { query: at("query").value.trim(), k: Number(at("k").value), explain: true };
  const stages = [...document.querySelectorAll('input[name="stage"]')];
  if (chosenStage() !== stages.at(-1)) asked.first_stage = chosenStage().value; // the last one: as the steps say
  const where = at("where").value.trim();
  if (where) asked.where = where;
  asked.rerank = !at("reranking").hidden && at("rerank").checked;
  return asked;
}

async function search() {
  at("error").hidden = true;
  at("results").replaceChildren();
  at("times").hidden = at("facets").hidden = true;
  at("filter").hidden &&= !at("where").value;
  try {
    if (!at("stages").querySelector("input")) offer(await ask("info"));
    const asked = wish();
    at("status").textContent = asked.query ? "Searching ..." : "Type a query.";
    if (!asked.query) return;
    writeLink(asked);
    const start = performance.now();
    const { answers, milliseconds } = await ask("search", asked);
    show(answers[0], milliseconds, performance.now() - start);
  } catch (error) {
    explain(error);
  }
}

function show(answer, inServer, untilHere) {
  const found = answer.results.length;
  at("status").textContent = found ? `${found} result${found === 1 ? "" : "s"}` : "Nothing found.";
  if (answer.truncated) at("status").textContent += "; the query is too long and was cut";
  showTimes(answer.milliseconds, inServer, untilHere);
  showFacets(answer.results);
  if (answer.terms) at("times").append(weighted("terms:", answer.terms));
  at("results").append(...folded(answer.results).map(listed));
}

function showTimes(steps, inServer, untilHere) {
  const known = Object.values(steps).reduce((sum, time) => sum + time, 0);
  const parts = [...Object.entries(steps), ["other work", Math.max(0, inServer - known)]];
  if (untilHere > inServer) parts.push(["network", untilHere - inServer]);
  const all = parts.reduce((sum, [, time]) => sum + time, 0);
  const shown = parts.map(([part, time]) => element("span", `${part} ${time.toFixed(1)} ms`));
  at("times").replaceChildren(element("summary", `${(all / 1000).toFixed(2)} s`), ...shown);
  at("times").hidden = false;
}

function showFacets(results) {
  const fields = new Map(); // field -> condition -> [value, number of results]
  for (const { metadata } of results) {
    for (const [field, given] of Object.entries(metadata)) {
      for (const value of new Set([given].flat())) {
        if (!["string", "number", "boolean"].includes(typeof value) || String(value).length > 60) continue;
        const values = fields.get(field) ?? new Map();
        const condition = `${named(field)} ${Array.isArray(given) ? "has" : "="} ${written(value)}`;
        values.set(condition, [value, (values.get(condition)?.[1] ?? 0) + 1]);
        fields.set(field, values);
      }
    }
  }
  const lines = [];
  for (const [field, values] of fields) {
    const some = [...values].filter(([, [, count]]) => count < results.length);
    if (!some.length || values.size > FEW) continue;
    const line = element("p", `${field}:`);
    line.append(...some.sort(([, a], [, b]) => b[1] - a[1]).map(([condition, [value, count]]) => facet(condition, value, count)));
    lines.push(line);
  }
  at("facets").replaceChildren(...lines);
  at("facets").hidden = !lines.length;
  if (results.some(({ metadata }) => Object.keys(metadata).length)) at("filter").hidden = false;
}

function facet(condition, value, count) {
  const button = element("button", `${value} (${count})`, { type: "button", title: condition });
  button.addEventListener("click", () => {
    const where = at("where").value.trim();
    at("where").value = !where ? condition : `${/\bor\b/i.test(where) ? `(${where})` : where} and ${condition}`;
    search();
  });
  return button;
}

function named(field) {
  return /^[a-z_]\w*$/i.test(field) && !WORDS.has(field.toLowerCase()) ? field : `"${field.replaceAll('"', '""')}"`;
}

function written(value) {
  return typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value);
}

function folded(results) {
  const groups = new Map(); // equal texts are shown once
  for (const result of results) {
    const text = `${result.title} ${result.text}`.replace(/\s+/g, " ").trim();
    const key = text || result.doc_id;
    groups.set(key, [...(groups.get(key) ?? []), result]);
  }
  return [...groups.values()];
}

function listed([result, ...same]) {
  const item = element("li", "", { tabindex: "-1" });
  const title = element("h2", "");
  title.append(element("span", `${result.rank}.`, { class: "rank" }), linked(result, marked(result.heading)));
  const text = element("p", "", { class: "text" });
  text.append(...marked(result.passage));
  item.append(title, text);
  if (result.warmth) item.append(heat(result.warmth));
  if (result.terms) item.append(weighted("has", result.terms));
  if (placed(result).length) item.append(source(result));
  if (same.length) {
    const line = element("p", "The same text: ", { class: "same" });
    line.append(...same.flatMap((other, i) => [i ? ", " : "", linked(other, [other.doc_id])]));
    item.append(line);
  }
  if (result.passage.map((piece) => piece.text).join("") !== result.text) item.append(opened("all of it", wholeText(result)));
  item.append(opened("why", places(result)));
  return item;
}

function heat(pieces) {
  const known = pieces.map((piece) => piece.similarity).filter((similarity) => typeof similarity === "number");
  const [least, most] = [Math.min(...known), Math.max(...known)];
  const line = element("p", "", { class: "heat", title: "How well each word matches the query" });
  for (const { text, similarity } of pieces) {
    if (typeof similarity !== "number") {
      line.append(document.createTextNode(text));
      continue;
    }
    const level = most > least ? Math.round((4 * (similarity - least)) / (most - least)) : 0;
    line.append(element("span", text, { class: `heat-${level}`, title: similarity.toFixed(2) }));
  }
  return line;
}

function weighted(label, terms) {
  const line = element("p", `${label} `, { class: "terms" });
  const shown = terms.slice(0, 30).map(({ term, weight }) => element("span", `${term} ${weight.toFixed(2)}`));
  line.append(...shown.flatMap((one, i) => [i ? ", " : "", one]));
  return line;
}

function linked(result, shown) {
  const link = /^https?:\/\//i.test(result.url); // no other scheme: a script could hide behind it
  const made = element(link ? "a" : "span", "", link ? { href: result.url, rel: "noreferrer" } : {});
  made.append(...shown);
  return made;
}

function placed({ metadata, chunk, doc_id: id }) {
  const found = [metadata.document ?? (chunk ? id : undefined)];
  if (metadata.page !== undefined) found.push(`page ${metadata.page}`);
  return found.filter((part) => typeof part === "string");
}

function source(result) {
  const { begin, end } = result.metadata;
  const line = element("p", placed(result).join(", "), { class: "source" });
  if (begin !== undefined && end !== undefined) line.append(element("span", `characters ${begin} to ${end}`));
  const button = element("button", "copy citation", { type: "button" });
  button.addEventListener("click", async () => {
    await navigator.clipboard?.writeText([result.title, ...placed(result)].filter(Boolean).join(", "));
    at("status").textContent = "The citation is copied.";
  });
  line.append(button);
  return line;
}

function opened(summary, content) {
  const made = element("details", "");
  made.append(element("summary", summary), content);
  return made;
}

function wholeText(result) {
  return element("p", result.text, { class: "text" });
}

function places(result) {
  const line = element("p", "", { class: "places" });
  line.append(element("span", result.doc_id));
  for (const [stage, place] of Object.entries(result.stages)) {
    line.append(element("span", `${stage} #${place.rank} (${place.score.toFixed(4)})`, { "data-stage": stage }));
    if (place.moved !== undefined) line.append(movement(place.moved, stage));
  }
  if (result.truncated) line.append(element("span", "read in part"));
  return line;
}

function movement(places, step) {
  if (!places) return element("span", "=", { class: "moved", role: "img", "aria-label": `not moved by ${step}` });
  const [sign, way] = places > 0 ? ["▲", "up"] : ["▼", "down"];
  const label = `moved ${way} ${Math.abs(places)} by ${step}`;
  const attributes = { class: `moved ${way}`, role: "img", "aria-label": label, title: label };
  return element("span", `${sign} ${Math.abs(places)}`, attributes);
}

function marked(pieces) {
  return pieces.map((piece) => (piece.found ? element("mark", piece.text) : document.createTextNode(piece.text)));
}

function step(by) {
  const items = [...at("results").children];
  const now = items.indexOf(document.activeElement?.closest("#results li"));
  items[Math.min(items.length - 1, Math.max(0, now + by))]?.focus();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=radio]):not([type=checkbox]), select");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const does = { "/": () => at("query").focus(), j: () => step(1), k: () => step(-1) }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
});

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  search();
});
at("form").addEventListener("change", (event) => {
  if (event.target.matches("input[type=radio], input[type=checkbox], select")) search();
});
at("share").addEventListener("click", async () => {
  await navigator.clipboard?.writeText(location.href);
  at("status").textContent = "The link is copied; it is this page's address, too.";
});
window.addEventListener("popstate", () => {
  readLink();
  search();
});

readLink();
search();
at("query").focus();
