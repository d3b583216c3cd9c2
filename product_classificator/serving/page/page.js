"use strict";
const WORDS = {
  en: {
    title: "Try a product", docs: "API", drop: "Drop a photo here, or choose one", text: "Title and description",
    precision: "Target precision", key: "API key", secret: "The key stays in this tab", send: "Classify", clear: "Clear",
    working: "Working…", nothing: "Add a photo, a text, or both.", auto: "accepted", review: "for review", none: "(none)",
    why: "Why", photo: "photo", textPart: "text", against: "against", nearest: "Nearest training products",
    novel: "unlike the training products: a person should check everything", took: "ms", failed: "No answer",
  },
  ru: {
    title: "Проверьте товар", docs: "API", drop: "Перетащите фото сюда или выберите файл", text: "Название и описание",
    precision: "Целевая точность", key: "Ключ API", secret: "Ключ остаётся в этой вкладке", send: "Определить", clear: "Очистить",
    working: "Считаем…", nothing: "Добавьте фото, текст или и то и другое.", auto: "принято", review: "на проверку", none: "(нет)",
    why: "Что повлияло", photo: "фото", textPart: "текст", against: "против", nearest: "Ближайшие товары обучающей выборки",
    novel: "не похож на товары, на которых училась модель: проверьте всё вручную", took: "мс", failed: "Ответа нет",
  },
};
const get = (id) => document.getElementById(id);
let language = (sessionStorage.language || navigator.language || "en").startsWith("ru") ? "ru" : "en";
let photo = null, answer = null, canDecide = true;

function make(tag, text, kind) {  // never HTML: labels and words come from data
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (kind) element.className = kind;
  return element;
}

function translate() {
  const words = WORDS[language];
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = words[element.dataset.t];
  const other = language === "ru" ? "en" : "ru";
  get("language").textContent = other === "ru" ? "Русский" : "English";
  get("language").lang = other;
  if (answer) show();
}

function choose(file) {
  photo = file || null;
  const preview = get("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.hidden = !photo;
  if (photo) { preview.src = URL.createObjectURL(photo); preview.alt = photo.name; } else preview.removeAttribute("src");
}

function say(text, isError) {
  get("message").textContent = text;
  get("message").className = isError ? "error" : "";
}

async function classify(event) {
  event.preventDefault();
  const text = get("text").value.trim(), words = WORDS[language];
  if (!photo && !text) return say(words.nothing, true);
  const form = new FormData();
  if (text) form.append("text", text);
  if (photo) form.append("photo", photo);
  form.append("top_k", "5");
  form.append("explain", "true");
  if (canDecide) form.append("min_precision", get("precision").value);
  const headers = { "X-Timeout-Ms": "60000" };
  if (get("secret").value) headers.Authorization = "Bearer " + get("secret").value.trim();
  say(words.working);
  get("send").disabled = true;
  const start = performance.now();
  try {
    const response = await fetch("v1/classify", { method: "POST", body: form, headers });
    const body = await response.json();
    if (!response.ok) throw new Error(body.error.message);
    answer = body;
    say(Math.round(performance.now() - start) + " " + words.took);
    show();
  } catch (error) {
    if (canDecide && /thresholds/.test(error.message)) { canDecide = false; return classify(event); }
    say(words.failed + ": " + error.message, true);
  } finally {
    get("send").disabled = false;
  }
}

function show() {
  const words = WORDS[language], product = answer.products[0], results = get("results");
  results.replaceChildren();
  const notes = [product.status === "ok" ? "" : product.status, product.detail || "", product.is_out_of_distribution ? words.novel : ""];
  for (const note of notes.filter(Boolean)) results.append(make("article", note, "wide review"));
  for (const [name, prediction] of Object.entries(product.predictions)) {
    const card = make("article");
    card.append(make("h2", name + ": " + (prediction.labels.join(", ") || words.none)));
    if (prediction.decision) card.append(make("p", words[prediction.decision], prediction.decision));
    const list = make("dl");
    for (const { label, probability } of prediction.top) {
      const meter = make("meter");
      meter.value = probability;
      meter.setAttribute("aria-label", label);
      const cell = make("dd");
      cell.append(Math.round(probability * 100) + " %");
      const row = make("dd", undefined, "bar");
      row.append(meter);
      list.append(make("dt", label), cell, row);
    }
    card.append(list);
    const reasons = (product.explanations || {})[name];
    if (reasons) card.append(explained(reasons, words));
    results.append(card);
  }
  nearest(product, results, words);
}

function explained(reasons, words) {
  const details = make("details"), list = make("dl");
  details.append(make("summary", words.why));
  if (reasons.runner_up) details.append(make("p", reasons.label + " " + words.against + " " + reasons.runner_up));
  const strongest = Object.entries(reasons.words).slice(0, 6);
  for (const [name, weight] of [[words.photo, reasons.photo], [words.textPart, reasons.text], ...strongest]) {
    list.append(make("dt", name), make("dd", (weight < 0 ? "−" : "+") + Math.abs(weight).toFixed(2)));
  }
  details.append(list);
  return details;
}

function nearest(product, results, words) {
  const all = Object.entries(product.explanations || {});
  if (!all.length || !all[0][1].nearest.length) return;
  const card = make("article", undefined, "wide"), list = make("dl");
  card.append(make("h2", words.nearest));
  all[0][1].nearest.forEach((neighbour, i) => {
    const labels = all.map(([, reasons]) => reasons.nearest[i].label).filter((label) => label !== null);
    list.append(make("dt", neighbour.id + " — " + labels.flat().join(", ")), make("dd", neighbour.similarity.toFixed(2)));
  });
  card.append(list);
  results.append(card);
}

const drop = get("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
  });
}
get("photo").addEventListener("change", (event) => choose(event.target.files[0]));
get("precision").addEventListener("input", (event) => { get("promised").textContent = event.target.value; });
get("form").addEventListener("submit", classify);
get("clear").addEventListener("click", () => {
  get("form").reset(); choose(null); answer = null; say(""); get("results").replaceChildren();
  get("promised").textContent = get("precision").value;
});
get("language").addEventListener("click", () => {
  language = language === "ru" ? "en" : "ru";
  sessionStorage.language = language;
  translate();
});
translate();
