"use strict";
// Keys press buttons: whatever a key does, a click does too. Everything else is decided by the server.
const CODES = { KeyN: "n", KeyS: "s", KeyB: "b", KeyU: "u", KeyG: "g", KeyP: "p", KeyT: "t", Enter: "Enter", NumpadEnter: "Enter" };
const one = (selector) => document.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

function keyOf(event) {  // by place, so that Russian letters do as well
  if (event.key === "?" || (event.code === "Slash" && event.shiftKey)) return "?";
  if (event.key === "/" || event.code === "Slash" || event.code === "NumpadDivide") return "/";
  const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  return digit ? digit[1] : CODES[event.code] || event.key;
}

function activate(fieldset) {
  if (!fieldset) return;
  for (const other of all(".answer.active")) other.classList.remove("active");
  fieldset.classList.add("active");
  one("#active").value = fieldset.dataset.name;
  explain();
  fieldset.scrollIntoView({ block: "nearest" });
}

function explain() {
  for (const reason of all(".reasons [data-name]")) reason.hidden = reason.dataset.name !== one("#active").value;
}

function open(id) {
  const dialog = document.getElementById(id);
  if (dialog.open) return;
  dialog.showModal();
  if (id === "palette") {
    const query = one("#query");
    query.value = "";
    query.dispatchEvent(new Event("open"));
    query.focus();
  }
}

function move(buttons, step, last) {
  if (buttons.length) buttons[Math.min(Math.max(buttons.indexOf(document.activeElement) + step, 0), last ?? buttons.length - 1)].focus();
}

function paletteKey(event) {
  const offers = all("#found .offer");
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    move([one("#query"), ...offers], event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Enter" && document.activeElement === one("#query") && offers.length) {
    event.preventDefault();
    offers[0].click();
  }
}

function gridKey(event, key) {
  const boxes = all(".tile input[type=checkbox]"), box = document.activeElement;
  const columns = getComputedStyle(one(".tiles")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
  if (!step) return false;
  event.preventDefault();
  if (boxes.includes(box)) move(boxes, step); else boxes[0]?.focus();
  return true;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (one("#palette")?.open) return paletteKey(event);
  if (one("dialog[open]")) return;
  const key = keyOf(event), target = event.target, isBox = target.type === "checkbox";
  if (target.matches("input, select, textarea") && !isBox) return;
  if (key === "Enter" && target.matches("a, summary, button:not(.main)")) return;
  if (busy && !"/?".includes(key)) {
    event.preventDefault();
    if (!event.repeat) ahead.push(event);
    return;
  }
  press(event, key);
});

function press(event, key) {
  if (one(".tiles") && gridKey(event, key)) return;
  const active = one(".answer.active");
  if (active && (key === "ArrowDown" || key === "ArrowUp")) {
    const fieldsets = all(".answer");
    event.preventDefault();
    return activate(fieldsets[fieldsets.indexOf(active) + (key === "ArrowDown" ? 1 : -1)]);
  }
  const button = /^[1-9]$/.test(key) ? all(".offer:not(.nothing)", active ?? document.body)[key - 1]
    : key === "t" ? active?.querySelector("[data-table]") : key === "n" ? active?.querySelector(".nothing") : all("[data-key]").find((item) => item.dataset.key === key);
  if (!button) return;
  event.preventDefault();
  if (!event.repeat) button.click();
}

// What is typed while an answer is on its way is for the page that it brings.
let busy = null, ahead = [];
function settled(event) {
  if (event.detail.xhr !== busy) return;
  busy = null;
  while (!busy && ahead.length) press(ahead[0], keyOf(ahead.shift()));
}
document.addEventListener("htmx:beforeRequest", (event) => {
  if (["work", "tiles", "answers"].includes(event.detail.target.id)) busy = event.detail.xhr;
});
document.addEventListener("htmx:afterSettle", settled);
for (const name of ["htmx:responseError", "htmx:sendError"]) document.addEventListener(name, (event) => { ahead = []; settled(event); });

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]"), fieldset = event.target.closest(".answer");
  if (opener) open(opener.dataset.opens);
  if (fieldset) activate(fieldset);
  if (event.target.closest("#more")) {
    const photo = one("#photo"), next = (Number(one("#shown-photo").textContent) % photo.dataset.photos) + 1;
    photo.src = photo.src.replace(/\d+\/large/, `${next - 1}/large`);
    one("#shown-photo").textContent = next;
  }
});
document.addEventListener("change", (event) => {
  if (event.target.matches("form.auto select")) event.target.form.requestSubmit();
});
document.addEventListener("error", (event) => {  // a photo that cannot be read leaves its place
  if (event.target.matches?.("img")) event.target.classList.add("broken");
}, true);

function say(text) {
  const problem = one("#problem");
  problem.hidden = !text;
  problem.textContent = text ? `${problem.dataset.prefix}: ${text}` : "";
}

document.addEventListener("htmx:afterSwap", (event) => {
  const target = event.detail.target;
  explain();
  if (target.id === "answers") { if (one("#palette")?.open) one("#palette").close(); }
  if (target.id === "work" || target.id === "tiles") {
    say("");
    one("#title")?.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
});
document.addEventListener("htmx:responseError", (event) => say(event.detail.xhr.responseText || event.detail.xhr.status));
document.addEventListener("htmx:sendError", () => say("…"));
