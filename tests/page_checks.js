// Every visible text against what is behind it, by the formula of WCAG 2.
function contrast() {
  const rgb = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      layers.push(rgb(getComputedStyle(e).backgroundColor));
      if (layers.at(-1)[3] === 1) break;
    }
    return layers.reverse().reduce((below, c) => over(c, below), [255, 255, 255, 1]);
  };
  const light = (colour) => {
    const [r, g, b] = colour
      .slice(0, 3)
      .map((v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const bad = [];
  let seen = 0;
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.data.trim();
    const e = walk.currentNode.parentElement;
    const style = getComputedStyle(e);
    if (!text || !e.checkVisibility() || e.getBoundingClientRect().width < 2) continue;
    if (e.closest(".hidden, .skip, script, title")) continue;
    const back = behind(e);
    const ink = over(rgb(e.closest("svg") ? style.fill : style.color), back);
    const [brighter, darker] = [light(ink), light(back)].sort((x, y) => y - x);
    const ratio = (brighter + 0.05) / (darker + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.6 && style.fontWeight >= 700);
    seen += 1;
    if (ratio < (large ? 3 : 4.5)) bad.push([text.slice(0, 30), ratio.toFixed(2), String(e.className)]);
  }
  return { bad: bad.slice(0, 8), seen };
}

// What sticks out of the page, apart from what scrolls inside its own box.
function outside() {
  const out = (e) => {
    const box = e.getBoundingClientRect();
    return box.width && (box.right > innerWidth + 1 || box.left < -1) && !e.closest(".scroll, pre, .skip, .hidden, svg");
  };
  return [...document.querySelectorAll("body *")].filter(out).map((e) => e.tagName + "." + e.className).slice(0, 5);
}

// What a chart draws beyond its own edge, and words in it that lie on each other.
function charts() {
  const bad = [];
  for (const chart of document.querySelectorAll("svg.chart")) {
    if (!chart.checkVisibility()) continue;
    const edge = chart.getBoundingClientRect();
    for (const e of chart.querySelectorAll("path, text, rect, circle.reference-point")) {
      const box = e.getBoundingClientRect();
      if (!box.width && !box.height) continue; // not drawn
      if (box.left < edge.left - 2 || box.right > edge.right + 2 || box.top < edge.top - 2 || box.bottom > edge.bottom + 2)
        bad.push("outside: " + e.outerHTML.slice(0, 80));
    }
    const texts = [...chart.querySelectorAll(":scope > text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
    texts.forEach(([a, x], i) =>
      texts.slice(i + 1).forEach(([b, y]) => {
        if (x.left < y.right && y.left < x.right && x.top + 2 < y.bottom && y.top + 2 < x.bottom) bad.push(a + " on " + b);
      }),
    );
  }
  return bad.slice(0, 5);
}
