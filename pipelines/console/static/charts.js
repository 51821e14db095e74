// Charts of metrics by step, drawn by uPlot. Charts of a running run load new steps every few seconds.
"use strict";
(() => {
  const REFRESH_MS = 5000;
  const COLOURS = { light: ["#2563eb", "#c2410c", "#047857", "#7c3aed", "#be123c", "#0e7490", "#4d7c0f", "#a21caf"],
                    dark: ["#60a5fa", "#fb923c", "#34d399", "#a78bfa", "#fb7185", "#22d3ee", "#a3e635", "#e879f9"] };
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const colours = () => style("--scheme") === "dark" ? COLOURS.dark : COLOURS.light;
  const path = run => run.split("/").map(encodeURIComponent).join("/");

  async function load(run, metrics) {
    const query = new URLSearchParams(metrics.map(each => ["metric", each]));
    const response = await fetch(`/api/runs/${path(run)}/metrics?${query}`);
    if (response.status === 401) { location.reload(); throw new Error("signed out"); }
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    return answer;
  }

  // Columns of several metrics over the union of their steps.
  function joined(series) {
    const known = series.map(([steps, values]) => steps.length ? [steps, values] : [[0], [null]]);
    return known.length === 1 ? known[0] : uPlot.join(known);
  }

  function draw(plot, labels, series) {
    if (plot.chart) { plot.chart.destroy(); plot.chart = null; }
    plot.replaceChildren();
    if (!series.some(([steps]) => steps.length)) {
      const empty = document.createElement("p");
      empty.className = "dim"; empty.textContent = "no values yet";
      plot.append(empty);
      return;
    }
    const axis = { stroke: style("--dim"), grid: { stroke: style("--line"), width: 1 }, ticks: { stroke: style("--line") }, font: "12px system-ui, sans-serif" };
    const points = series.map(([steps]) => steps.length);
    const options = {
      width: plot.clientWidth, height: plot.classList.contains("tall") ? 380 : 210,
      scales: { x: { time: false } },
      axes: [{ ...axis, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000] }, { ...axis, size: 58, values: (_, ticks) => ticks.map(short) }],
      legend: { live: true }, cursor: { points: { size: 6 }, drag: { x: true, y: false } },
      series: [{ label: "step" }, ...labels.map((label, index) => ({
        label, stroke: colours()[index % colours().length], width: 2, spanGaps: true,
        dash: index >= 4 ? [6, 4] : undefined, points: { show: points[index] < 3 }, value: (_, value) => value == null ? "–" : short(value) }))],
    };
    plot.chart = new uPlot(options, joined(series), plot);
  }

  function short(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e6 || size < 1e-3) return value.toExponential(1);
    return size >= 1000 ? `${+(value / 1000).toPrecision(3)}k` : `${+value.toPrecision(3)}`;
  }

  function failed(plots, error) {
    for (const plot of plots) {
      const text = document.createElement("p");
      text.className = "bad"; text.textContent = error.message;
      plot.replaceChildren(text);
    }
  }

  // One run, several charts.
  async function showRun(page) {
    const plots = [...page.querySelectorAll(".plot")];
    const wanted = [...new Set(plots.flatMap(plot => JSON.parse(plot.dataset.lines).map(([metric]) => metric)))];
    let last = null;
    const render = () => plots.forEach(plot => {
      const lines = JSON.parse(plot.dataset.lines);
      draw(plot, lines.map(([, label]) => label), lines.map(([metric]) => last.metrics[metric] || [[], []]));
    });
    const refresh = async () => {
      const answer = await load(page.dataset.run, wanted);
      const isNew = !last || answer.step !== last.step;
      last = answer;
      if (isNew) render();
      const step = document.querySelector("[data-step]");
      if (step && answer.total_steps) step.textContent = `${answer.step} / ${answer.total_steps}`;
      if (answer.state === "running" || answer.state === "silent") setTimeout(() => refresh().catch(() => {}), REFRESH_MS);
    };
    redraw.push(() => last && render());
    try { await refresh(); } catch (error) { failed(plots, error); }
  }

  // One metric, several runs.
  async function showComparison(plot) {
    const runs = JSON.parse(plot.dataset.runs), metric = plot.dataset.metric;
    try {
      const answers = await Promise.all(runs.map(run => load(run, [metric])));
      const render = () => draw(plot, runs, answers.map(answer => answer.metrics[metric] || [[], []]));
      redraw.push(render);
      render();
    } catch (error) { failed([plot], error); }
  }

  const redraw = [];
  const all = () => redraw.forEach(each => each());
  let waiting = 0;
  document.addEventListener("themechange", all);
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(all, 150); });
  document.querySelectorAll(".charts").forEach(showRun);
  document.querySelectorAll(".plot[data-runs]").forEach(showComparison);
})();
