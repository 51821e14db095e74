// Numbers of workers of a live run's pools, which the run's controller knows.
"use strict";
(() => {
  const table = document.getElementById("pools"), state = document.getElementById("pools-state");
  if (!table || table.dataset.alive !== "yes") return;
  const run = table.dataset.run.split("/").map(encodeURIComponent).join("/");

  function row(pool) {
    const known = [...table.tBodies[0].rows].find(each => each.dataset.pool === pool);
    if (known) return known;
    const added = table.tBodies[0].insertRow();
    added.dataset.pool = pool;
    for (let column = 0; column < 6; column++) added.insertCell().className = column > 1 ? "n" : "";
    added.cells[0].textContent = pool;
    added.cells[1].textContent = "–";
    return added;
  }

  async function refresh() {
    const response = await fetch(`/api/runs/${run}/pools`), answer = await response.json();
    if (!response.ok) throw new Error(answer.message);
    if (!answer.pools) { state.textContent = "The run's controller does not answer: numbers of workers are unknown."; return; }
    for (const [pool, size] of Object.entries(answer.pools))
      ["target", "ready", "starting", "draining"].forEach((key, index) => { row(pool).cells[index + 2].textContent = size[key]; });
    state.textContent = "Median idle share over the last steps; numbers of workers now.";
    setTimeout(() => refresh().catch(() => {}), 15000);
  }
  refresh().catch(error => { state.textContent = error.message; });
})();
