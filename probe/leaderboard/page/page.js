// The state of the page is in its address (see KEYS); `go` changes it and `show` draws it.
const FILTERS = ["protocol", "mode", "precision", "solver"]; // together they name a section
const KEYS = [...FILTERS, "models", "datasets", "sort", "order", "chart", "model", "record"];
const MEAN = "mean", NONE = "none"; // NONE is the solver of runs that fit nothing
const boards = [...document.querySelectorAll(".board")];
const rowsOf = new Map(); // board -> its rows, the best first
let state = {}, current = 0, sorted = "", drawn = "";

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  state = Object.fromEntries(KEYS.filter((key) => given.get(key)).map((key) => [key, given.get(key)]));
  const linked = data.records.findIndex((record) => record.file === state.record);
  const own = data.sections.findIndex((section) => section.lines.some((line) => line.cells.includes(linked)));
  current = FILTERS.some((key) => key in state) || own < 0 ? nearest(state) : own;
}

function address(changes) {
  const next = { ...pick(data.sections[current]), ...state, ...changes };
  const pairs = KEYS.filter((key) => next[key]).map((key) => [key, next[key]]);
  return `#${new URLSearchParams(pairs).toString().replaceAll("%2F", "/")}`;
}

function go(changes, how = "pushState") {
  history[how](null, "", address(changes));
  read();
  show();
}

const pick = (section) => Object.fromEntries(FILTERS.map((key) => [key, section[key]]));

// The section that has most of the wanted values; `first` counts most, then the order of FILTERS.
function nearest(wanted, first) {
  const weigh = (section) => FILTERS.reduce((sum, key, i) => sum + (section[key] === wanted[key]) * (key === first ? 16 : 8 >> i), 0);
  const weights = data.sections.map(weigh);
  return weights.indexOf(Math.max(...weights));
}

function choose(key, value) {
  const before = pick(data.sections[current]), index = nearest({ ...before, [key]: value }, key);
  const after = pick(data.sections[index]);
  const isMoved = (other) => other !== key && after[other] !== before[other] && ![before[other], after[other]].includes(NONE);
  const moved = FILTERS.filter(isMoved).map((other) => `${other} is now ${after[other]}`);
  go({ ...after, sort: "", order: "" });
  if (moved.length) byId("found").append(` No run has ${value} with the other filters: ${moved.join(", ")}.`);
}

// --- tables -----------------------------------------------------------------------------------------------------

const contains = (text, wanted = "") => wanted.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
const headersOf = (board) => [...board.querySelectorAll("thead th")];

// Turn headers and scores into buttons, and models into links.
function prepare(board) {
  if (rowsOf.has(board)) return;
  rowsOf.set(board, [...board.querySelector("tbody").rows]);
  for (const header of headersOf(board)) header.replaceChildren(make("button", { type: "button" }, ...header.childNodes));
  for (const row of rowsOf.get(board)) {
    const model = data.models[row.dataset.index];
    const link = make("a", { "data-model": model.name }, make("span", { class: `swatch ${colour(row.dataset.index)}` }), model.label);
    row.cells[0].replaceChildren(link);
    for (const cell of row.querySelectorAll("td[data-record]")) {
      const record = data.records[cell.dataset.record];
      const place = { best: ", the best", tied: ", tied with the best" }[cell.classList[0]] || "";
      const label = `${model.label} on ${record.dataset}: ${cell.textContent}${place}${cell.title ? `, ${cell.title}` : ""}. Open the record`;
      const button = make("button", { type: "button", "data-record": cell.dataset.record, "aria-label": label }, ...cell.childNodes);
      cell.replaceChildren(button);
    }
  }
}

function toggleSort(key) {
  const first = key === "model" || key === "rank" ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  go({ sort: key, order: state.sort === key && state.order === first ? other : first }, "replaceState");
}

function sortRows(board) {
  const key = `${current} ${state.sort} ${state.order}`;
  if (sorted === key) return;
  sorted = key;
  const headers = headersOf(board), column = headers.findIndex((header) => header.dataset.key === state.sort);
  headers.forEach((header, i) => (i === column ? header.setAttribute("aria-sort", state.order || "descending") : header.removeAttribute("aria-sort")));
  const sign = state.order === "ascending" ? 1 : -1;
  const value = (row) => (column === 0 ? row.dataset.model : row.cells[column].dataset.value ? Number(row.cells[column].dataset.value) : null);
  const keyed = rowsOf.get(board).map((row) => ({ row, value: column < 0 ? 0 : value(row) }));
  keyed.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // missing scores go last
    return sign * (column === 0 ? a.value.localeCompare(b.value, "en", { numeric: true }) : a.value - b.value);
  });
  board.querySelector("tbody").append(...keyed.map((one) => one.row));
}

// Hide what the words exclude; return the numbers of models and datasets that are left.
function filter(board) {
  const rows = rowsOf.get(board);
  for (const row of rows) row.hidden = !contains(`${row.dataset.model} ${row.cells[0].textContent}`, state.models);
  let columns = 0;
  for (const [i, header] of headersOf(board).entries()) {
    if (!("dataset" in header.dataset)) continue;
    const isHidden = !contains(header.dataset.dataset, state.datasets);
    columns += !isHidden;
    if (header.hidden === isHidden) continue;
    header.hidden = isHidden;
    for (const row of rows) row.cells[i].hidden = isHidden;
  }
  return [rows.filter((row) => !row.hidden).length, columns];
}

function filterTables() {
  for (const table of document.querySelectorAll("section.table")) {
    const rows = [...table.querySelectorAll("tbody tr")];
    for (const row of rows) {
      const [dataset, model] = row.cells;
      const isShown = state.model ? row.dataset.model === state.model : contains(`${row.dataset.model} ${model.textContent}`, state.models);
      row.hidden = !isShown || !contains(dataset.textContent, state.datasets);
    }
    table.hidden = rows.every((row) => row.hidden);
  }
}

// --- charts, a model, a record ----------------------------------------------------------------------------------

function drawCharts() {
  const section = data.sections[current], model = data.models.findIndex((one) => one.name === state.model);
  const names = section.common > 1 ? [MEAN, ...section.datasets] : section.datasets;
  const name = names.includes(state.chart) ? state.chart : names[0];
  byId("chart").replaceChildren(...names.map((one) => make("option", {}, one)));
  byId("chart").value = name;
  byId("chart-label").hidden = model >= 0 || names.length < 2;
  document.querySelectorAll("#charts figure").forEach((figure) => (figure.hidden = true));
  byId("charts").hidden = false;
  const isShown = (index) => (model < 0 ? contains(`${data.models[index].name} ${data.models[index].label}`, state.models) : index === model);
  if (model < 0) {
    const lines = section.lines.filter((line) => isShown(line.model));
    const items = lines.map((line) => ({ ...(name === MEAN ? line : itemOf(line.cells[section.datasets.indexOf(name)])), model: line.model, label: data.models[line.model].label, gflops: data.models[line.model].gflops }));
    drawAll(name === MEAN ? `averaged over ${count(section.common, "dataset")}` : `on ${name}`, items);
  } else {
    const line = section.lines.find((one) => one.model === model) || { cells: [] };
    const items = line.cells.map((index, i) => ({ ...itemOf(index), model, label: section.datasets[i], dash: ["", "6 3", "2 3", "8 3 2 3"][i % 4] }));
    drawAll(`of ${data.models[model].label}`, items);
  }
  const point = (x, index, more) => ({ x: 100 * x, y: 100 * data.records[index].score, model: data.records[index].model, record: index, label: titleOf(data.records[index]), more });
  const pairs = data.pairs.map((pair) => point(data.records[pair.eager].score, pair.jit, { "changed predictions": pair.flipped ?? "", p: number(pair.p), "largest feature difference": number(pair.largest) }));
  drawPairs("jit", "JIT against eager", "All runs in both modes. On the line, the modes agree.", pairs.filter((one) => isShown(one.model)), "eager, %", "JIT, %");
  const methods = (data.methods || []).map((one) => point(data.records[one.zero_shot].score, one.probe, { p: number(one.p) }));
  drawPairs("zero-shot", "Zero-shot against the linear probe", "The same model and test images. Above the diagonal, the linear probe has the higher score.", methods.filter((one) => isShown(one.model)), "zero-shot, %", "linear probe, %");
  drawFurther(section, isShown);
  drawShots((data.shots || [])[section.shots], isShown);
  const published = data.published.map((one) => point(one.theirs, one.record, {}));
  drawPairs("published", "The CLIP paper against here", "Table 10 of Radford et al. 2021 and the same runs here. On the line, both agree.", published.filter((one) => isShown(one.model)), "published, %", "here, %");
  byId("charts").hidden = [...document.querySelectorAll("#charts figure")].every((figure) => figure.hidden);
}

// A chart for each further test set, of the runs of one section: one protocol, mode, precision and solver.
function drawFurther(section, isShown) {
  const own = new Set(section.lines.flatMap((line) => line.cells)), panels = new Map();
  for (const one of data.further || []) {
    const { model, dataset, score } = data.records[one.record];
    if (!own.has(one.record) || !isShown(model)) continue;
    const key = JSON.stringify([one.test, dataset]);
    if (!panels.has(key)) panels.set(key, []);
    panels.get(key).push({ x: 100 * score, y: 100 * one.score, model, record: one.record, label: data.models[model].label, more: {} });
  }
  byId("further").replaceChildren(...[...panels.keys()].map((_, i) => make("figure", { id: `further-${i}` })));
  const text = `The same probes (${section.protocol}) on other images, with predictions among all classes of the dataset. At the same score on the dataset, the higher model is more robust.`;
  [...panels].forEach(([key, points], i) => {
    const [test, dataset] = JSON.parse(key);
    drawPairs(`further-${i}`, `${test} against ${dataset}`, text, points, `test split of ${shorten(dataset)}, %`, `${shorten(test)}, %`);
  });
}

const itemOf = (index) => (index === null || index === undefined ? {} : { ...data.records[index], record: index });
const titleOf = (record) => `${data.models[record.model].label} on ${record.dataset}, ${[record.protocol, record.mode, record.solver].filter((part) => part !== NONE).join(", ")}`;

function drawAll(of, items) {
  const scored = items.filter((one) => one.score !== undefined || one.mean !== undefined).map((one) => ({ ...one, score: one.score ?? one.mean }));
  drawBars(of, scored, { least: state.model ? 1 : 2 });
  drawCost(of, scored);
  drawSweep(of, scored);
}

const entries = (facts) => Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);

function showModel(board) {
  const model = data.models.find((one) => one.name === state.model);
  board.hidden = Boolean(model);
  byId("model").hidden = !model;
  if (!model) return;
  byId("back").setAttribute("href", address({ model: "" }));
  const [section, isNew] = [data.sections[current], byId("model-title").textContent !== model.label];
  byId("model-title").textContent = model.label;
  const has = section.lines.some((line) => data.models[line.model] === model);
  byId("model-about").textContent = `${has ? "Charts of" : "It has no run of"} ${FILTERS.map((key) => section[key]).filter((part) => part !== NONE).join(", ")}.`;
  byId("model-facts").replaceChildren(...entries(model.facts));
  if (isNew) byId("model-title").focus();
}

function showRecord() {
  const record = data.records.find((one) => one.file === state.record), dialog = byId("record");
  if (!record) return void (dialog.open && dialog.close());
  const has = (value, text) => (value === undefined ? "" : text), isFitted = record.solver !== NONE;
  const facts = {
    score: record.score === undefined ? "" : `${percent(record.score)} % (${record.metric})`,
    error: record.error,
    "95 % confidence interval": has(record.low, `${percent(record.low)} to ${percent(record.high)} %`),
    "clean score": record.clean,
    status: record.status,
    C: number(record.C),
    k: number(record.k),
    prompts: record.prompts,
    iterations: has(record.iterations, String(record.iterations)),
    "gradient (end / start)": number(record.gradient),
    images: has(record.test, `${record.train === undefined ? "" : `${record.train} ${isFitted ? "to fit" : "in the bank"}, `}${record.test} to test`),
    "SHA-256 of the weights": record.weights,
    seconds: record.seconds,
    environment: data.environments[record.environment],
    created: record.created,
  };
  byId("record-title").textContent = `${data.models[record.model].label} on ${record.dataset}`;
  byId("record-about").textContent = `${record.protocol}, ${record.mode} mode, ${record.precision}${isFitted ? `, ${record.solver} solver` : ""}`;
  byId("facts").replaceChildren(...entries(facts));
  byId("command").textContent = `python -m probe reproduce ${record.file}`;
  byId("file").setAttribute("href", (data.folder || "") + encodeURI(record.file));
  byId("copy").textContent = "Copy the command";
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  drawDetails(record, Math.max(240, dialog.clientWidth - 82)); // without the padding of the dialog and of a figure
}

// Scores of classes, confusions and calibration of a record that has them.
function drawDetails(record, width) {
  for (const id of ["classes", "confusions", "reliability"]) byId(id).hidden = true;
  const { classes = [], confusions = [], num_classes: total } = record;
  const items = classes.map(([name, images, score, low, high]) => ({ label: data.names[name], images, score, low, high, model: record.model }));
  const kind = record.metric === "voc2007_11pt_map" ? "average precision" : "recall";
  drawBars(`of ${items.length < total ? `the ${items.length} worst of ` : ""}${total} classes (${kind})`, items, { least: 1, id: "classes", width });
  const rows = confusions.map(([name, predicted, images, share]) => ({ cells: [data.names[name], data.names[predicted], images, percent(share)] }));
  if (rows.length) put("confusions", "Most frequent confusions", "Test images of a class for which another class was predicted.", "", ["class", "predicted", "images", "of the class, %"], rows);
  if (record.calibration) drawReliability(record, width);
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("command")); // a page from a file may not use the clipboard
    byId("copy").textContent = "Selected; copy it with your keyboard";
  }
}

// --- all of it --------------------------------------------------------------------------------------------------

function show() {
  const section = data.sections[current], board = boards[current];
  boards.forEach((other) => (other.hidden = other !== board));
  prepare(board);
  for (const key of FILTERS) byId(key).value = section[key];
  for (const key of ["models", "datasets"]) if (byId(key).value !== (state[key] || "")) byId(key).value = state[key] || "";
  for (const link of board.querySelectorAll("a[data-model]")) link.setAttribute("href", address({ model: link.dataset.model, record: "" }));
  sortRows(board);
  const [models, columns] = filter(board);
  byId("found").textContent = state.model ? "" : `${count(models, "model")}, ${count(columns, "dataset")}${state.sort ? `, sorted by ${state.sort}, ${state.order}` : ""}.`;
  showModel(board);
  filterTables();
  const key = JSON.stringify([current, state.models, state.chart, state.model]);
  if (drawn !== key) drawCharts();
  drawn = key;
  showRecord();
}

if (boards.length) {
  byId("filters").hidden = false;
  byId("filters").open = !matchMedia("(max-width: 40rem)").matches;
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const key of FILTERS) byId(key).addEventListener("change", (event) => choose(key, event.target.value));
  for (const key of ["models", "datasets"]) byId(key).addEventListener("input", (event) => go({ [key]: event.target.value }, "replaceState"));
  byId("chart").addEventListener("change", (event) => go({ chart: event.target.value }, "replaceState"));
  byId("copy").addEventListener("click", copyCommand);
  byId("record").addEventListener("close", () => state.record && go({ record: "" }, "replaceState"));
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("button[data-record], svg [data-record]"), header = event.target.closest(".board thead th");
    if (opener) go({ record: data.records[opener.dataset.record].file });
    else if (header) toggleSort(header.dataset.key);
  });
  addEventListener("popstate", () => { read(); show(); });
  read();
  show();
}
