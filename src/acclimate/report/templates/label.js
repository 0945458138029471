
// The page on which images are labelled. The labels lie in the browser's storage, under the name of the draw.

function labels() {
  const data = JSON.parse(byId("label-data").textContent);
  const n = data.rows.length, K = data.labels.length, place = `acclimate-labels-${data.draw}`;
  const state = read() || { given: Array(n).fill(null), order: [], at: 0 };
  let keeps = true;

  function read() {
    try {
      const found = JSON.parse(localStorage.getItem(place));
      const isLabel = (k) => k === null || (Number.isInteger(k) && k >= 0 && k < K);
      const isImage = (i) => Number.isInteger(i) && i >= 0 && i < n;
      const whole = found.given.length === n && found.given.every(isLabel) && found.order.every(isImage) && isImage(found.at);
      return whole ? found : null;
    } catch {
      return null;
    }
  }

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(state));
    } catch {
      keeps = false;
    }
  }

  const done = () => state.given.filter((k) => k !== null).length;

  function next() {
    for (let step = 1; step <= n; step++) {
      const i = (state.at + step) % n;
      if (state.given[i] === null) return i;
    }
    return state.at;
  }

  function give(k) {
    if (state.given[state.at] !== null) return; // all are labelled
    state.given[state.at] = k;
    state.order.push(state.at);
    move(next(), `Last label: ${data.labels[k]}. `);
  }

  function undo() {
    if (!state.order.length) return;
    const i = state.order.pop();
    state.given[i] = null;
    move(i, "Taken back. ");
  }

  function move(i, said) {
    state.at = i;
    keep();
    show(said);
  }

  function show(said) {
    const count = done(), over = count === n, last = state.given.findLastIndex((k) => k !== null);
    const skipped = state.given.filter((k, i) => k === null && i < last && i !== state.at).length;
    byId("image").src = data.images[state.at];
    byId("image").alt = byId("name").textContent = data.rows[state.at][0];
    byId("question").textContent = over ? "All images are labelled" : "What does the image show?";
    byId("done").value = count;
    byId("count").textContent = `${count} of ${n}`;
    byId("undo").disabled = !state.order.length;
    byId("skip").disabled = count >= n - 1;
    buttons.forEach((button) => { button.disabled = over; });
    byId("choices").hidden = over;
    byId("find").hidden = over || data.keys.length > 0;
    const back = skipped > 0 ? `${skipped} skipped ${skipped === 1 ? "image comes" : "images come"} back at the end.` : "";
    byId("told").textContent = over ? "Download the labels, and evaluate them with the command below." : `${said}${back}`;
    byId("after").hidden = count === 0;
    byId("download").className = over ? "main" : "quiet";
    byId("kept").textContent = keeps
      ? "This browser keeps the labels: you may close the page, and go on later."
      : "This browser keeps nothing: download the labels before you close the page.";
  }

  function quoted(text) {
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }

  function asText(cell) { // as text.py: as_text
    return /^'*[=+\-@\t\r]/.test(cell) ? `'${cell}` : cell;
  }

  function table() {
    const label = (k) => (k === null ? "" : data.labels[k]);
    const rows = data.rows.map(([name, ...rest], i) => [asText(name), asText(label(state.given[i])), ...rest].map(quoted).join(","));
    return [...data.heading, ...rows, ""].join("\r\n");
  }

  function download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const buttons = data.labels.map((name, k) => {
    const button = document.createElement("button"), text = document.createElement("span");
    button.type = "button";
    button.className = k === K - 1 ? "other" : "";
    if (data.keys.length) button.append(Object.assign(document.createElement("kbd"), { textContent: data.keys[k] }));
    text.textContent = name;
    button.append(text);
    button.addEventListener("click", () => give(k));
    byId("choices").append(button);
    return button;
  });

  const find = byId("find");
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    buttons.forEach((button, k) => { button.hidden = !data.labels[k].toLowerCase().includes(wanted); });
  });
  find.addEventListener("keydown", (event) => {
    const left = buttons.filter((button) => !button.hidden);
    if (event.key !== "Enter" || !find.value.trim() || !left.length) return;
    left[0].click();
    find.value = "";
    buttons.forEach((button) => { button.hidden = false; });
  });

  document.addEventListener("keydown", (event) => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.target === find) return;
    const k = data.keys.indexOf(event.key);
    if (k >= 0) give(k);
    else if (event.key === "Backspace") undo();
    else if (event.key === "ArrowRight") byId("skip").click();
    else return;
    event.preventDefault();
  });
  byId("undo").addEventListener("click", undo);
  byId("skip").addEventListener("click", () => move(next(), ""));
  byId("download").addEventListener("click", download);
  byId("work").hidden = false;
  keep();
  show("");
}

labels();
