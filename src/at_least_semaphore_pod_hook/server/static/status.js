// Shows what /status/events tells. Text from the cluster is only ever set as text, never as markup.
"use strict";

const PAGE = 200;
const AGAIN_MS = 10_000;
const SILENT_MS = 45_000;
const SLOT_S = 15;
const HOUR_S = 3600;
const SHORTEST_S = 300; // what the plot shows at least, where less is known
const COLUMNS = ["Length", "Free", "Held", "Waiting", "Oldest wait", "Conditions"];
const ROLES = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell", col: "columnheader", row: "rowheader" };
const SVG = "http://www.w3.org/2000/svg";

const $ = (id) => document.getElementById(id);
const semaphores = new Map();
const rows = new Map();
const opened = new Set();
let shown = PAGE;
let readAt = 0;
let heardAt = 0;
let ahead = 0; // how far the server's clock is ahead of ours, in milliseconds
let omitted = false;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  // Named, as a table that narrow screens show as cards would be none for a screen reader.
  const role = ROLES[tag === "th" ? attributes.scope : tag];
  if (role) element.setAttribute("role", role);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const now = () => Date.now() + ahead;

function duration(milliseconds) {
  const s = Math.max(0, Math.round(milliseconds / 1000));
  if (s < 60) return `${s}s`;
  if (s < 3600) return `${Math.floor(s / 60)}m${s % 60}s`;
  if (s < 86400) return `${Math.floor(s / 3600)}h${Math.floor((s % 3600) / 60)}m`;
  return `${Math.floor(s / 86400)}d${Math.floor((s % 86400) / 3600)}h`;
}

// A moment that is shown as its distance from now, and kept so by `tick`.
function distance(moment, left) {
  const time = make("time", { datetime: moment, title: moment });
  time.dataset[left ? "until" : "since"] = String(Date.parse(moment));
  tickOne(time);
  return time;
}

function tickOne(time) {
  const { since, until } = time.dataset;
  put(time, duration(until === undefined ? now() - Number(since) : Number(until) - now()));
}

function nameOf(semaphore) {
  return `${semaphore.namespace}/${semaphore.key}`;
}

// Rows: a body of its own for each semaphore, which is kept, so that focus and selection survive updates.

function newRow(name, semaphore) {
  const detailId = `detail-${encodeURIComponent(name)}`;
  const opener = make("button", { type: "button", class: "opener", "aria-expanded": "false", "aria-controls": detailId });
  opener.append(make("span", { class: "namespace" }, `${semaphore.namespace}/`), semaphore.key);
  opener.addEventListener("click", () => toggle(name));
  const part = draw("rect", { class: "part", width: "0", height: "10", x: "0", y: "0" });
  const whole = draw("rect", { class: "all", width: "100", height: "10", x: "0", y: "0" });
  const meter = draw("svg", { class: "meter", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, whole, part);
  const cells = COLUMNS.map((column, number) => make("td", { "data-name": column, class: number < 5 ? "number" : "bad" }));
  const summary = make("tr", { class: "summary" }, make("th", { scope: "row" }, opener, meter), ...cells);
  const inside = make("td", { colspan: String(COLUMNS.length + 1) });
  const detail = make("tr", { class: "detail", id: detailId, hidden: "" }, inside);
  const body = make("tbody", {}, summary, detail);
  return { body, summary, opener, part, cells, detail, inside, plot: null, points: [], semaphore: null };
}

function fill(row, semaphore) {
  if (row.semaphore === semaphore) return;
  const known = row.semaphore;
  row.semaphore = semaphore;
  const [length, free, held, waiting, oldest, strange] = row.cells;
  put(length, String(semaphore.length));
  put(free, String(semaphore.free));
  free.className = semaphore.free ? "number free" : "number";
  put(held, String(semaphore.held));
  held.className = semaphore.held > semaphore.length ? "number bad" : "number held";
  put(waiting, semaphore.waiting === null ? "?" : String(semaphore.waiting));
  waiting.className = semaphore.waiting ? "number waiting" : "number";
  oldest.replaceChildren(semaphore.oldest_wait_since ? distance(semaphore.oldest_wait_since, false) : semaphore.waiting === null ? "?" : "-");
  put(strange, semaphore.conditions.join(", "));
  row.part.setAttribute("width", String(semaphore.length ? Math.min(100, (100 * semaphore.held) / semaphore.length) : 0));
  if (known && (known.held !== semaphore.held || known.waiting !== semaphore.waiting || known.length !== semaphore.length)) {
    row.summary.classList.remove("fresh");
    void row.summary.offsetWidth; // so that the animation starts anew
    row.summary.classList.add("fresh");
  }
  if (!row.detail.hidden) fillDetail(row);
}

function toggle(name) {
  if (!opened.delete(name)) opened.add(name);
  const row = rows.get(name);
  unfold(row, opened.has(name));
}

function unfold(row, open) {
  if (row.detail.hidden !== open) return;
  row.opener.setAttribute("aria-expanded", String(open));
  row.detail.hidden = !open;
  if (open) {
    fillDetail(row);
    loadHistory(row);
  }
}

function table(title, heads, lines, total) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = make("tbody", {}, ...lines.map((line) => make("tr", {}, ...line.map((cell, number) => make("td", { "data-name": heads[number] }, cell)))));
  const parts = [make("h2", {}, title), make("table", {}, make("caption", { class: "unseen" }, title), make("thead", {}, head), body)];
  if (total > lines.length) parts.push(make("p", {}, `and ${total - lines.length} more`));
  return parts;
}

function fillDetail(row) {
  const { semaphore } = row;
  const parts = [];
  if (semaphore.holders.length) {
    const lines = semaphore.holders.map((holder) => [
      holder.pod || "?",
      holder.node || "-",
      distance(holder.since, false),
      distance(holder.lease_ends, true),
      String(holder.token),
      make("code", {}, holder.permit),
      holder.silent ? "silent" : holder.confirmed ? "renews" : "not yet",
    ]);
    parts.push(...table("Holders", ["Pod", "Node", "Since", "Lease left", "Fencing token", "Permit", "Sidecar"], lines, semaphore.held));
  } else {
    parts.push(make("h2", {}, "Holders"), make("p", {}, "none"));
  }
  if (semaphore.waiters.length) {
    const lines = semaphore.waiters.map((waiter) => [
      String(waiter.position), waiter.pod, distance(waiter.since, false), waiter.gated ? "scheduling gate" : "sidecar",
    ]);
    parts.push(...table("Waiters, in line", ["Place", "Pod", "Waiting for", "Behind"], lines, semaphore.waiting));
  } else {
    parts.push(make("h2", {}, "Waiters, in line"), make("p", {}, semaphore.waiting === null ? "not known" : "none"));
  }
  if (semaphore.denied.length) {
    parts.push(make("h2", {}, "Owners of denied pods, to be woken"), make("p", {}, semaphore.denied.join(", ")));
  }
  row.plot ??= make("div");
  row.inside.replaceChildren(make("h2", {}, "The last hour"), row.plot, ...parts);
  plot(row);
}

// The plot: steps, as numbers hold until they change.

async function loadHistory(row) {
  const query = new URLSearchParams({ semaphore: nameOf(row.semaphore) });
  try {
    const answer = await fetch(`status/history.json?${query}`);
    if (answer.ok) row.points = await answer.json();
  } catch {
    return; // what is shown already stays
  }
  plot(row);
}

function plot(row) {
  const { semaphore, points } = row;
  const end = now() / 1000;
  const all = points.filter(([at]) => at > end - HOUR_S);
  all.push([end, semaphore.held, semaphore.waiting ?? 0]);
  const most = (index) => Math.max(...all.map((point) => point[index]));
  const [mostHeld, mostWaiting] = [most(1), most(2)];
  const top = Math.max(1, semaphore.length <= 4 * Math.max(mostHeld, 1) ? semaphore.length : 0, mostHeld, mostWaiting);
  const [width, height, left] = [600, 90, 36];
  const span = Math.min(HOUR_S, Math.max(SHORTEST_S, end - all[0][0]));
  const x = (at) => (left + (width - left) * Math.max(0, 1 - (end - at) / span)).toFixed(1);
  const y = (value) => (8 + (height - 10) * (1 - value / top)).toFixed(1);
  const steps = (index) => {
    let path = "";
    all.forEach((point, number) => {
      // After a gap nobody knows what was: the line begins anew.
      const gap = number && point[0] - all[number - 1][0] > 4 * SLOT_S;
      if (!number || gap) path += `M${x(point[0])} ${y(point[index])}`;
      else path += `H${x(point[0])}V${y(point[index])}`;
    });
    return path;
  };
  const label =
    `Held now ${semaphore.held}, at most ${mostHeld} within the last hour; ` +
    (semaphore.waiting === null ? "how many wait is not known." : `waiting now ${semaphore.waiting}, at most ${mostWaiting}.`);
  const lines = [draw("path", { class: "axis", d: `M${left} ${y(0)}H${width}` })];
  if (semaphore.length <= top) lines.push(draw("path", { class: "length", d: `M${left} ${y(semaphore.length)}H${width}` }));
  lines.push(draw("path", { class: "held", d: steps(1) }), draw("path", { class: "waiting", d: steps(2) }));
  const text = (at, below, anchor, what) => draw("text", { x: String(at), y: String(below), "text-anchor": anchor }, what);
  const picture = draw("svg", { class: "plot", viewBox: "0 0 600 108", role: "img", "aria-label": label },
    ...lines, text(left - 6, 14, "end", String(top)), text(left - 6, height, "end", "0"),
    text(left, 104, "start", `${Math.round(span / 60)} min ago`), text(width, 104, "end", "now"));
  const legend = make("ul", { class: "legend" }, make("li", { class: "held" }, "held"), make("li", { class: "waiting" }, "waiting"), make("li", { class: "length" }, "length"));
  row.plot.replaceChildren(picture, legend);
}

// What is shown, in which order.

function matches(semaphore, wanted) {
  if (!wanted) return true;
  const texts = [nameOf(semaphore), ...semaphore.holders.flatMap((holder) => [holder.pod, holder.node]), ...semaphore.waiters.map((waiter) => waiter.pod)];
  return texts.some((text) => text.toLowerCase().includes(wanted));
}

const ORDERS = {
  name: () => 0,
  waiting: (one, other) => (other.waiting ?? 0) - (one.waiting ?? 0),
  wait: (one, other) => Date.parse(one.oldest_wait_since ?? "9999-01-01") - Date.parse(other.oldest_wait_since ?? "9999-01-01"),
  held: (one, other) => other.held - one.held,
};

function show() {
  const wanted = $("search").value.trim().toLowerCase();
  const order = ORDERS[$("sort").value];
  const chosen = [...semaphores.values()].filter((semaphore) => matches(semaphore, wanted));
  const byName = (one, other) => (nameOf(one) < nameOf(other) ? -1 : 1);
  chosen.sort((one, other) => order(one, other) || byName(one, other));
  const visible = chosen.slice(0, shown);
  const names = new Set(visible.map(nameOf));
  for (const [name, row] of rows) {
    if (names.has(name)) continue;
    row.body.remove();
    rows.delete(name);
  }
  const focused = document.activeElement;
  let before = $("semaphores").tHead;
  for (const semaphore of visible) {
    const name = nameOf(semaphore);
    let row = rows.get(name);
    if (!row) rows.set(name, (row = newRow(name, semaphore)));
    fill(row, semaphore);
    // Moved only where it has to be: what is moved loses selection and focus.
    if (before.nextElementSibling !== row.body) before.after(row.body);
    before = row.body;
    unfold(row, opened.has(name));
  }
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
  const all = semaphores.size;
  const count = wanted ? `${chosen.length} of ${all}` : String(all);
  put($("count"), `${count} semaphore${all === 1 ? "" : "s"}${omitted ? ", and more that are not shown" : ""}`);
  $("scroller").hidden = !chosen.length;
  $("empty").hidden = Boolean(chosen.length) || !readAt;
  put($("empty"), wanted ? "No semaphore, holder or waiter of that name." : "No semaphore has holders or waiters.");
  $("more").hidden = chosen.length <= shown;
}

// News.

function take(update) {
  heardAt = Date.now();
  ahead = update.sent * 1000 - heardAt;
  readAt = update.at;
  omitted = update.omitted;
  if (update.whole) semaphores.clear();
  for (const name of update.gone) {
    semaphores.delete(name);
    opened.delete(name);
  }
  for (const semaphore of update.semaphores) semaphores.set(nameOf(semaphore), semaphore);
  put($("trouble"), update.trouble);
  $("trouble").hidden = !update.trouble;
  show();
}

function connected(state, text) {
  $("connection").className = state;
  put($("connection"), text);
}

function connect() {
  const source = new EventSource("status/events");
  source.addEventListener("open", () => {
    heardAt = Date.now();
    connected("live", "live");
  });
  source.addEventListener("message", (event) => take(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    connected("lost", "not connected: trying again");
    // Refused, as where there are too many viewers: the browser does not try again by itself.
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(connect, AGAIN_MS);
    fetch("status.json").then((answer) => answer.json()).then(take, () => {});
  });
  const watch = setInterval(() => {
    if (source.readyState === EventSource.OPEN && Date.now() - heardAt < SILENT_MS) return;
    if (source.readyState === EventSource.OPEN) {
      connected("lost", "no news: connecting anew");
      source.close();
      connect();
    }
    if (source.readyState === EventSource.CLOSED) clearInterval(watch);
  }, 5000);
}

function tick() {
  for (const time of document.querySelectorAll("time")) tickOne(time);
}

$("search").addEventListener("input", () => { shown = PAGE; show(); });
$("sort").addEventListener("change", show);
$("tools").addEventListener("submit", (event) => event.preventDefault());
$("more").addEventListener("click", () => { shown += PAGE; show(); });
document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    $("search").focus();
  }
  if (event.key === "Escape" && event.target === $("search")) {
    $("search").value = "";
    show();
  }
});
setInterval(tick, 1000);
setInterval(() => { for (const name of opened) if (rows.has(name)) loadHistory(rows.get(name)); }, SLOT_S * 1000);
connect();
