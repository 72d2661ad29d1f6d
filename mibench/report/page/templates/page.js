"use strict";
const $ = id => document.getElementById(id);
const make = (tag, kind, words) => {
  const one = document.createElement(tag);
  if (kind) one.className = kind;
  if (words !== undefined) one.textContent = words;
  return one;
};

/* --- light and dark ---------------------------------------------------------------------------------------------- */

{
  const button = $("theme"), root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = { get() { try { return localStorage.getItem("mibench-theme"); } catch { return null; } },
                 set(value) { try { localStorage.setItem("mibench-theme", value); } catch { /* a private window */ } } };
  const dark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const say = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent} colours`);
  };
  if (["dark", "light"].includes(kept.get())) root.dataset.theme = kept.get();
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; kept.set(root.dataset.theme); say(); });
  system.addEventListener("change", say);
  button.hidden = false;
  say();
}

/* --- tables: sort and filter -------------------------------------------------------------------------------------- */

function sortBy(table, place, header) {
  const up = header.getAttribute("aria-sort") === "descending" ||
    (header.getAttribute("aria-sort") === null && !header.classList.contains("n"));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row, order) => {
    const cell = row.cells[place];
    const number = cell.dataset.key === undefined ? NaN : Number(cell.dataset.key);
    return { row, order, number, words: cell.textContent.trim() };
  });
  const blank = one => Number.isNaN(one.number) && one.words === "";
  keyed.sort((one, other) => {
    if (blank(one) !== blank(other)) return blank(one) ? 1 : -1;  // what was not measured stays last
    const both = !Number.isNaN(one.number) && !Number.isNaN(other.number);
    const apart = both ? one.number - other.number : one.words.localeCompare(other.words, "en", { numeric: true });
    return (up ? apart : -apart) || one.order - other.order;
  });
  body.append(...keyed.map(one => one.row));
}

function filterOf(table) {
  const box = make("div", "filter"), label = make("label", "", "Filter rows "), field = make("input");
  const told = make("span", "small");
  field.type = "search";
  told.setAttribute("role", "status");
  label.append(field);
  box.append(label, told);
  const rows = [...table.tBodies[0].rows];
  let known;
  field.addEventListener("input", () => {
    known ??= rows.map(row => row.textContent.toLowerCase());
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !words.every(word => known[place].includes(word));
      if (!row.hidden) shown++;
    });
    told.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  });
  return box;
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  [...table.tHead.rows[0].cells].forEach((header, place) => {
    const button = make("button", "", header.textContent);
    button.type = "button";
    button.addEventListener("click", () => sortBy(table, place, header));
    header.replaceChildren(button);
  });
  if (table.tBodies[0].rows.length > 4) table.closest(".scroll").before(filterOf(table));
}

/* --- figures as files --------------------------------------------------------------------------------------------- */

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "paint-order",
                "font-family", "font-size", "font-weight", "text-anchor", "opacity"];

function saved(drawing) {
  const copy = drawing.cloneNode(true), there = [copy, ...copy.querySelectorAll("*")];
  [drawing, ...drawing.querySelectorAll("*")].forEach((one, place) => {
    const style = getComputedStyle(one);
    for (const name of STYLES) there[place].setAttribute(name, style.getPropertyValue(name));
    there[place].removeAttribute("class");
  });
  const [, , wide, high] = drawing.getAttribute("viewBox").split(" ");
  copy.setAttribute("width", wide);
  copy.setAttribute("height", high);
  const ground = document.createElementNS(drawing.namespaceURI, "rect");
  ground.setAttribute("width", "100%");
  ground.setAttribute("height", "100%");
  ground.setAttribute("fill", getComputedStyle(document.body).backgroundColor);
  copy.prepend(ground);
  return new XMLSerializer().serializeToString(copy);
}

for (const button of document.querySelectorAll(".save")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const text = saved(button.closest("figure").querySelector("svg"));
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${button.dataset.name.replace(/[^\w.=-]+/g, "-")}.svg`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const from = $(button.dataset.from);
    try {
      await navigator.clipboard.writeText(from.textContent);
      button.textContent = "Copied";
    } catch {  // a file that was opened from disk may not be allowed to
      getSelection().selectAllChildren(from);
      button.textContent = "Selected: press Ctrl-C";
    }
  });
}

/* --- what a link leads to is opened ------------------------------------------------------------------------------- */

function open() {
  const there = location.hash ? $(decodeURIComponent(location.hash.slice(1))) : null;
  if (there?.tagName !== "DETAILS") return;
  there.open = true;
  there.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", open);
open();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open]):not(.runs *, #dictionary *)")];
  for (const one of closed) one.open = true;
});
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });
