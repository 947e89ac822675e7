"use strict";
// Tables: keyboard for their heads, and a filter. Grids: laid out from the data in the page. Nothing is fetched.

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) node.setAttribute(key, value);
  node.append(...children);
  return node;
};

for (const head of document.querySelectorAll("table.sortable thead th")) {
  head.tabIndex = 0;
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); head.click(); }
  });
}

for (const input of document.querySelectorAll("input[data-filters]")) {
  const table = document.getElementById(input.dataset.filters), told = input.closest("p").nextElementSibling;
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    told.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
}

const store = document.getElementById("grid-data");
if (store) grid(JSON.parse(store.textContent));

function grid(data) {
  const place = document.getElementById("grid"), count = document.getElementById("shown");
  const changed = document.getElementById("changed"), failed = document.getElementById("failed");
  const which = document.getElementById("group"), search = document.getElementById("search");
  const rows = [];
  for (const group of data.groups) {
    const section = make("section", {"aria-label": group.title});
    const seed = data.seeds > 1 ? `, seed ${group.seed}` : "";
    const told = group.columns.map((column) => `${column.title} ${counted(column.seen)}`).join("; ");
    section.append(make("h3", {}, `${group.title}${seed}`), make("p", {class: "faint"}, `Judge sees it in: ${told}.`));
    group.ids.forEach((id, i) => {
      const seen = group.columns.map((column) => column.seen[i]).filter((value) => value !== null);
      const node = row(data, group, id, i);
      section.append(node);
      rows.push({node, section, group: group.name, changed: new Set(seen).size > 1,
        failed: group.columns.some((column) => column.status[i] && column.status[i] !== "ok"),
        text: `${id} ${group.texts[i] || ""} ${group.relations[i]} ${group.asks[i]}`.toLowerCase()});
    });
    place.append(section);
  }
  const apply = () => {
    let shown = 0;
    const open = new Set();
    for (const one of rows) {
      const keep = (!which.value || one.group === which.value) && (!changed.checked || one.changed) &&
        (!failed.checked || one.failed) && one.text.includes(search.value.toLowerCase());
      one.node.hidden = !keep;
      if (keep) { shown += 1; open.add(one.section); }
    }
    for (const section of place.children) section.hidden = !open.has(section);
    count.textContent = `${shown} of ${rows.length} prompts`;
  };
  for (const control of [which, changed, failed, search]) control.addEventListener("input", apply);
  apply();
}

function counted(seen) {
  const known = seen.filter((value) => value !== null);
  return `${known.filter((value) => value >= 0.5).length} of ${known.length}`;
}

function row(data, group, id, i) {
  const text = group.texts[i] === null ? "" : group.texts[i];
  const label = make("p", {}, make("strong", {}, id), make("br"), text,
    make("span", {class: "faint"}, group.relations[i] ? ` (${group.relations[i]})` : ""));
  const tiles = make("div", {class: "tiles"}, ...group.columns.map((column) => tile(data, group, column, id, i)));
  return make("div", {class: "row"}, label, tiles);
}

function tile(data, group, column, id, i) {
  const seen = column.seen[i], status = column.status[i] || "", file = data.files[column.src[i]];
  const verdict = status && status !== "ok" ? `failed: ${status}` : seen === null ? "not judged" :
    `${seen >= 0.5 ? "seen" : "not seen"}${column.score[i] === null ? "" : ` ${column.score[i].toFixed(2)}`}`;
  const veil = data.unsafe && column.src[i] !== null;
  const shown = veil ? `../images/${column.src[i]}.veil.png` : file ? `../images/${file}` : null;
  const known = column.src[i] !== null && column.src[i] in data.files && shown;
  const picture = known ? make("img", {src: shown, loading: "lazy", decoding: "async", width: 128, height: 128, alt: ""}) :
    make("span", {class: "none"}, "no image");
  const node = make("button", {type: "button", class: `tile${seen !== null && seen >= 0.5 ? " seen" : ""}`,
    "aria-label": `${column.title}, ${id}: ${verdict}${veil && known ? ", blurred, press to show" : ""}`},
    picture, column.title, make("br"), verdict);
  if (veil && known) node.dataset.veiled = file ? "yes" : "left out";
  node.addEventListener("click", () => {
    if (node.dataset.veiled === "yes") {
      picture.src = `../images/${file}`;
      delete node.dataset.veiled;
      node.setAttribute("aria-label", `${column.title}, ${id}: ${verdict}`);
    } else detail(data, group, column, id, i, verdict, known ? picture.src : null);
  });
  return node;
}

function detail(data, group, column, id, i, verdict, source) {
  const dialog = document.getElementById("detail"), body = dialog.querySelector("div");
  const line = (name, value) => make("tr", {}, make("th", {scope: "row"}, name), make("td", {}, String(value)));
  const facts = [line("prompt", id), line("text", group.texts[i] === null ? "withheld" : group.texts[i]),
    line("group", `${group.name}${group.relations[i] ? `, ${group.relations[i]}` : ""}`), line("asks for", group.asks[i] || "-"),
    line("model", column.title), line("judge", data.judge), line("verdict", verdict), line("status", column.status[i] || "not measured")];
  for (const [name, values] of Object.entries(column.values)) if (values[i] !== null) facts.push(line(name, values[i]));
  body.replaceChildren(...(source ? [make("img", {src: source, alt: `${column.title}, ${id}`})] : []), make("table", {}, make("tbody", {}, ...facts)));
  dialog.showModal();
}
