// Work of each worker over time, as SVG.
"use strict";
(() => {
  const place = document.getElementById("timeline");
  if (!place) return;
  const SVG = "http://www.w3.org/2000/svg", ROW = 26, TOP = 24;
  const run = place.dataset.run.split("/").map(encodeURIComponent).join("/");
  let shown = null;

  function element(name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function draw() {
    const width = place.clientWidth - 26, left = Math.min(190, width * 0.36), length = Math.max(shown.end_s - shown.start_s, 1e-6);
    const x = at => left + (width - left - 4) * Math.min(1, Math.max(0, (at - shown.start_s) / length));
    const pools = [...new Set(shown.lanes.map(([, pool]) => pool))];
    const picture = element("svg", { width, height: TOP + ROW * shown.lanes.length + 4, "aria-hidden": "true" });
    for (let part = 0; part <= 4; part++) {
      const at = shown.start_s + length * part / 4;
      picture.append(element("line", { x1: x(at), x2: x(at), y1: TOP - 4, y2: TOP + ROW * shown.lanes.length, class: "grid" }));
      picture.append(element("text", { x: x(at), y: 13, class: "tick", "text-anchor": part === 0 ? "start" : part === 4 ? "end" : "middle" }, `${at.toFixed(length < 10 ? 2 : 0)} s`));
    }
    shown.lanes.forEach(([lane, pool], index) => {
      const y = TOP + ROW * index, name = lane.length * 7 > left ? `${lane.slice(0, Math.floor(left / 7) - 1)}…` : lane;
      picture.append(element("text", { x: 0, y: y + 17, class: "lane" }, name));
      for (const span of shown.spans.filter(each => each.lane === lane)) {
        const begin = x(span.start_s);
        const bar = element("rect", { x: begin, y: y + 4, width: Math.max(1, x(span.end_s) - begin), height: ROW - 8, rx: 2, class: `span pool-${pools.indexOf(pool) % 6}` });
        bar.append(element("title", {}, `${span.pool}: ${span.name}\n${span.start_s.toFixed(2)} s, ${(span.end_s - span.start_s).toFixed(2)} s long`));
        picture.append(bar);
      }
    });
    place.replaceChildren(picture);
    document.getElementById("window").textContent = `${shown.start_s.toFixed(1)} to ${shown.end_s.toFixed(1)} of ${shown.total_s.toFixed(1)} s` + (shown.left_out ? `, ${shown.left_out} short spans left out` : "");
    for (const row of document.getElementById("busy").tBodies[0].rows) {
      const share = shown.busy[row.dataset.lane] || 0;
      row.querySelector("meter").value = share;
      row.querySelector("td span").textContent = `${Math.round(100 * share)}%`;
    }
  }

  async function load(start, end) {
    const query = end === undefined ? "" : `?start=${Math.max(0, start)}&end=${end}`;
    const response = await fetch(`/api/runs/${run}/timeline${query}`), answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    shown = answer;
    draw();
  }

  function move(kind) {
    if (!shown) return;
    const length = Math.max(shown.end_s - shown.start_s, 0.05), middle = (shown.start_s + shown.end_s) / 2;
    const to = { earlier: [-length / 2, -length / 2], later: [length / 2, length / 2] }[kind];
    let [start, end] = to ? [shown.start_s + to[0], shown.end_s + to[1]] : [middle - length * (kind === "in" ? 0.25 : 1), middle + length * (kind === "in" ? 0.25 : 1)];
    if (end > shown.total_s) [start, end] = [Math.max(0, start - (end - shown.total_s)), shown.total_s];
    if (start < 0) [start, end] = [0, Math.min(shown.total_s, end - start)];
    load(start, end).catch(failed);
  }

  function failed(error) {
    const text = document.createElement("p");
    text.className = "bad"; text.textContent = error.message;
    place.replaceChildren(text);
  }

  for (const button of document.querySelectorAll("[data-move]")) button.addEventListener("click", () => move(button.dataset.move));
  place.addEventListener("keydown", event => {
    const kind = { ArrowLeft: "earlier", ArrowRight: "later", "+": "in", "=": "in", "-": "out" }[event.key];
    if (kind) { event.preventDefault(); move(kind); }
  });
  addEventListener("resize", () => shown && draw());
  load().catch(failed);
})();
