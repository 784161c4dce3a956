"use strict";
// Everything on the page reads without this: it adds sorting, the filter, the legend's switches and the copy button.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const numeric = !head.classList.contains("text");
      // numbers start with the largest; a third press gives the order of the sweep back
      const order = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];
      const next = order[(order.indexOf(now) + 1) % 3];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (next) head.setAttribute("aria-sort", next);
      const sign = next === "descending" ? -1 : 1;
      const value = (row) => row.cells[column].dataset.v;
      const rows = [...original];
      if (next)
        rows.sort((a, b) => {
          if (a.classList.contains("unpruned") !== b.classList.contains("unpruned"))
            return a.classList.contains("unpruned") ? -1 : 1;
          const [x, y] = [value(a), value(b)];
          if (x === "" || y === "") return (x === "") - (y === "");
          return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
        });
      table.classList.toggle("sorted", Boolean(next));
      body.append(...rows);
    });
  });
}

const filter = document.getElementById("filter");
if (filter) {
  const box = filter.closest("p");
  const rows = [...document.querySelectorAll("table.results tbody tr")];
  box.hidden = false;
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.cells[0].textContent + " " + row.cells[1].textContent + " " + row.cells[7].textContent;
      row.hidden = !words.every((word) => text.toLowerCase().includes(word));
      shown += !row.hidden;
    }
    box.querySelector("[role=status]").textContent = words.length ? shown + " of " + rows.length + " lines" : "";
  });
}

const seriesOf = (button) => document.querySelectorAll('.series[data-m="' + button.dataset.m + '"]');
for (const button of document.querySelectorAll(".legend button")) {
  const kind = button.classList.contains("rest") ? "lit" : "off";
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(pressed));
    seriesOf(button).forEach((s) => s.classList.toggle(kind, kind === "lit" ? pressed : !pressed));
  });
  const light = (on) => () => {
    document.querySelector(".charts").classList.toggle("hovering", on);
    seriesOf(button).forEach((s) => s.classList.toggle("hover", on));
  };
  button.addEventListener("pointerenter", light(true));
  button.addEventListener("pointerleave", light(false));
}

const copy = document.querySelector(".copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.querySelector(".command code").textContent);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
}
