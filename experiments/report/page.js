"use strict";
// Sorting: a button in each header; numbers by their mean, text as text, dashes last.
const valueOf = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const found = text.match(/^\(?([+-]?\d*\.?\d+)(?:±[\d.]+)?\)?(?:e([+-]?\d+))?(?![\w.])/);
  return text === "-" ? null : found ? found[1] * 10 ** (found[2] || 0) : text;
};
const compare = (a, b) =>
  typeof a === typeof b
    ? typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true })
    : typeof a === "number" ? -1 : 1;
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
    rows.sort(([a], [b]) => a === null ? (b === null ? 0 : 1) : b === null ? -1 : sign * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  }));
}
// Filters: a row that says nothing of a key stays.
const form = document.querySelector("form.filters");
if (form) {
  const rows = [...document.querySelectorAll("tr[data-filters]")];
  const filters = rows.map((row) => JSON.parse(row.dataset.filters));
  const apply = () => {
    const wanted = [...form.querySelectorAll("select")].filter((s) => s.value);
    rows.forEach((row, i) => {
      row.hidden = wanted.some((s) => s.dataset.key in filters[i] && !filters[i][s.dataset.key].includes(s.value));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    form.querySelector("output").textContent = `${shown} of ${rows.length} rows shown`;
  };
  form.hidden = false;
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
}
// What needs no scrolling is no stop of the Tab key.
const watch = new ResizeObserver((boxes) => {
  for (const { target } of boxes) target.tabIndex = target.scrollWidth > target.clientWidth ? 0 : -1;
});
for (const box of document.querySelectorAll(".scroll")) watch.observe(box);
// A link to a run opens it.
const open = () => {
  const found = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (found && found.tagName === "DETAILS") found.open = true;
};
addEventListener("hashchange", open);
open();
