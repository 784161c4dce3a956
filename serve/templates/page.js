"use strict";
const at = (id) => document.getElementById(id);
const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif"];
let image = null;
let offer = null;
let running = null;

const headers = () => {
  const key = at("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

function complain(words) {
  at("error").textContent = words;
  at("error").hidden = !words;
}

// The server's answer, or an Error in words.
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers() });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found) return found;
  if (answer.status === 401) {
    at("key-box").hidden = false;
    at("key").focus();
  }
  throw new Error(found?.error?.message ?? `The server answers with status ${answer.status}.`);
}

async function showOffer() {
  const model = (await ask("/v1/models")).data[0];
  offer = model.vtc;
  at("model").textContent = model.id;
  document.title = `${model.id} – vtc serve`;
  const names = offer.pruners;
  at("pruner").replaceChildren(...names.map((name) => new Option(name, name, name === offer.pruner, name === offer.pruner)));
  const keep = offer.keep ?? offer.max_keep;
  if (keep !== null) {
    const tokens = Number.isInteger(keep) && keep >= 1;
    at("unit").value = tokens ? "tokens" : "percent";
    at("keep").value = tokens ? keep : Math.round(keep * 1000) / 10;
  }
  at("most").max = offer.max_tokens;
  at("most").value = Math.min(64, offer.max_tokens);
  showParameters();
  complain(names.length ? "" : "This server offers no method to compare with.");
}

const saysKeep = () =>
  Boolean(offer?.pruners_without_keep.includes(at("pruner").value)) || /\bkeep\s*=/.test(at("params").value);

function showParameters() {
  const name = at("pruner").value;
  at("params-box").hidden = !offer?.pruners_with_parameters.includes(name);
  if (at("params-box").hidden) at("params").value = "";
  at("keep").disabled = at("unit").disabled = saysKeep();
}

function take(file) {
  if (!file) return;
  if (!KINDS.includes(file.type)) {
    complain(`${file.name || "This"} is no PNG, JPEG, WebP or GIF.`);
    return;
  }
  const reader = new FileReader();
  reader.addEventListener("load", () => showPicture(reader.result, file.name || "Pasted picture"));
  reader.addEventListener("error", () => complain(`${file.name} can't be read.`));
  reader.readAsDataURL(file);
}

function showPicture(url, name) {
  image = url;
  at("preview").src = url;
  at("preview").hidden = false;
  at("file-words").textContent = name;
  complain("");
}

// JSON has one kind of number: 1.0, which is all of the tokens, has to be written as such.
function body() {
  const name = at("pruner").value;
  const params = at("params-box").hidden ? "" : at("params").value.trim();
  const pruner = params ? `${name}(${params})` : name;
  const asked = { image, question: at("question").value.trim(), max_tokens: Number(at("most").value), vtc: { pruner } };
  const given = Number(at("keep").value);
  if (saysKeep()) return JSON.stringify(asked);
  const tokens = at("unit").value === "tokens";
  const text = tokens ? String(given) : String(given / 100);
  asked.vtc.keep = "@keep@";
  return JSON.stringify(asked).replace('"@keep@"', !tokens && /^\d+$/.test(text) ? `${text}.0` : text);
}

function missing() {
  if (!offer) return "The server's methods are not known yet: give the API key, or reload this page.";
  if (!image) return "Choose a picture first.";
  if (!at("question").value.trim()) return "Type a question first.";
  if (!saysKeep() && !(Number(at("keep").value) > 0)) return "Keep must be a number above 0.";
  const most = Number(at("most").value);
  if (!Number.isInteger(most) || most < 1) return "The longest answer must be a whole number of tokens, at least 1.";
  return "";
}

async function compare(event) {
  event.preventDefault();
  if (running) return;
  running = new AbortController();
  at("go").disabled = true;
  complain("");
  try {
    if (!offer) await showOffer();
    const words = missing();
    if (words) throw new Error(words);
    at("stop").hidden = false;
    at("status").textContent = "Answering twice …";
    const found = await ask("/v1/vtc/compare", { method: "POST", body: body(), signal: running.signal });
    show(found);
    at("status").textContent = "Done.";
  } catch (error) {
    at("status").textContent = error.name === "AbortError" ? "Stopped." : "";
    if (error.name !== "AbortError") complain(error.message);
  } finally {
    running = null;
    at("go").disabled = false;
    at("stop").hidden = true;
  }
}

const count = (n) => Number(n).toLocaleString("en", { maximumFractionDigits: 1 });
const seconds = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(2)} s`);

function show(found) {
  const { unpruned, pruned } = found;
  const keep = pruned.keep === null ? "" : Number.isInteger(pruned.keep) && pruned.keep >= 1 ? `, ${pruned.keep} tokens` : `, ${count(100 * pruned.keep)}%`;
  at("pruned-head").textContent = `${pruned.pruner}${keep}`;
  for (const [name, side] of [["plain", unpruned], ["pruned", pruned]]) {
    const cut = side.finish_reason === "length" ? ", cut at its longest" : "";
    at(`${name}-note`).textContent = `${count(side.tokens)} token${side.tokens === 1 ? "" : "s"}${cut}`;
    at(`${name}-text`).textContent = side.text.trim() || "(nothing)";
  }
  const same = unpruned.text === pruned.text;
  at("verdict").replaceChildren(chip(same ? "better" : "worse", same ? "Same answer" : "Another answer"));
  showKept(found);
  showCosts(found);
  at("results").hidden = false;
  at("results").focus({ preventScroll: true });
  at("results").scrollIntoView({ block: "nearest" });
}

function chip(kind, words) {
  const made = document.createElement("span");
  made.className = `chip ${kind}`;
  made.textContent = words;
  return made;
}

function showKept({ pruned, pictures }) {
  const of = `${count(pruned.visual_tokens_kept)} of ${count(pruned.visual_tokens_seen)} visual tokens`;
  const where = pruned.where ? ` ${pruned.where}` : "";
  const drawn = pruned.merges
    ? "Kept tokens are averages: where they stand is clear, the rest is dimmed."
    : "Kept patches are clear, dropped ones dimmed.";
  at("kept-note").textContent = `${of}${where}. ${pictures.length ? drawn : "This method's tokens have no places in the picture."}`;
  at("pictures").className = pictures.length === 1 ? "one" : "";
  at("pictures").replaceChildren(
    ...pictures.map((url, i) => {
      const made = document.createElement("img");
      made.src = url;
      made.alt = `The picture${pictures.length > 1 ? `, part ${i + 1} of ${pictures.length}` : ""}: kept patches are clear, dropped ones dimmed`;
      return made;
    }),
  );
}

function showCosts({ unpruned, pruned, flops_ratio }) {
  const rows = [
    ["Visual tokens at the end", unpruned.visual_tokens_kept, pruned.visual_tokens_kept, count],
    ["Visual tokens, mean of layers", unpruned.visual_tokens_per_layer, pruned.visual_tokens_per_layer, count],
    ["First token after", unpruned.first_token_seconds, pruned.first_token_seconds, seconds],
    ["Whole answer after", unpruned.seconds, pruned.seconds, seconds],
  ].map(([name, before, after, words]) => [name, words(before), words(after), before > 0 ? after / before : null]);
  rows.push(["FLOPs of the prefill", "1", flops_ratio === null ? "not counted" : flops_ratio.toFixed(2), flops_ratio]);
  at("costs").replaceChildren(
    ...rows.map(([name, before, after, ratio]) => {
      const row = document.createElement("tr");
      const head = document.createElement("th");
      head.scope = "row";
      head.textContent = name;
      const cells = [before, after, ratio === null ? "–" : ""].map((text) => {
        const cell = document.createElement("td");
        cell.textContent = text;
        return cell;
      });
      if (ratio !== null) cells[2].append(bar(name, ratio), ` ${ratio.toFixed(2)}×`);
      row.append(head, ...cells);
      return row;
    }),
  );
}

function bar(name, ratio) {
  const made = document.createElement("meter");
  made.min = 0;
  made.max = 1;
  made.value = Math.min(1, ratio);
  made.setAttribute("aria-label", `${name}, relative to unpruned`);
  return made;
}

at("form").addEventListener("submit", compare);
at("stop").addEventListener("click", () => running?.abort());
at("pruner").addEventListener("change", showParameters);
at("params").addEventListener("input", showParameters);
at("file").addEventListener("change", (event) => take(event.target.files[0]));
at("key").addEventListener("change", () => showOffer().catch((error) => complain(error.message)));
at("example").addEventListener("click", async () => {
  try {
    const found = await ask("/v1/vtc/example");
    showPicture(found.image, "An example");
    at("question").value = found.question;
  } catch (error) {
    complain(error.message);
  }
});
for (const kind of ["dragenter", "dragover"])
  at("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
for (const kind of ["dragleave", "drop"]) at("drop").addEventListener(kind, () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((f) => KINDS.includes(f.type));
  if (file) take(file);
});
showOffer().catch((error) => complain(error.message));
