"use strict";
// The page is complete without this script. It adds the choice of colours, and the image under the pointer.

const byId = (id) => document.getElementById(id);

function theme() {
  const button = byId("theme"), root = document.documentElement;
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
  name();
}

function cloud() {
  const box = byId("cloud");
  if (!box) return;
  const data = JSON.parse(byId("cloud-data").textContent);
  const plots = [...box.querySelectorAll("svg[data-plot]")];
  const tip = byId("tip"), image = byId("tip-image");
  let only = null, current = -1;

  const classOf = (i) => (data.truth[i] >= 0 ? data.truth[i] : data.predicted[i]);
  const visible = (i) => only === null || classOf(i) === only;

  function describe(i) {
    const truth = data.truth[i] >= 0 ? data.classes[data.truth[i]] : null;
    if (i < data.sources) return ["Source", truth];
    const said = `${data.classes[data.predicted[i]]}, ${data.confidence[i]}\u00a0%`;
    return ["Target", truth === null ? `predicted ${said}` : data.truth[i] === data.predicted[i] ? `${said}, right` : `predicted ${said}; is ${truth}`];
  }

  function show(i, plot, aloud) {
    current = i;
    plots.forEach((svg, n) => {
      const ring = svg.querySelector(".ring"), [x, y] = i < 0 ? [-100, -100] : data.places[n][i];
      ring.setAttribute("cx", x);
      ring.setAttribute("cy", y);
    });
    tip.hidden = i < 0;
    if (i < 0) return;
    const [title, text] = describe(i);
    byId("tip-title").textContent = title;
    byId("tip-text").textContent = text;
    byId("tip-name").textContent = data.names[i];
    if (aloud) byId("told").textContent = `${title}: ${text}, ${data.names[i]}`;
    if (image) {
      const side = image.clientWidth;
      image.style.backgroundSize = `${side * data.columns}px auto`;
      image.style.backgroundPosition = `${-side * (i % data.columns)}px ${-side * Math.floor(i / data.columns)}px`;
    }
    const svg = plots[plot].getBoundingClientRect(), around = box.getBoundingClientRect();
    const scale = svg.width / 1000, [x, y] = data.places[plot][i];
    const left = svg.left - around.left + x * scale, top = svg.top - around.top + y * scale;
    const above = top - tip.offsetHeight - 18;
    tip.style.left = `${Math.min(Math.max(left - tip.offsetWidth / 2, 0), around.width - tip.offsetWidth)}px`;
    tip.style.top = `${svg.top + y * scale - tip.offsetHeight - 18 > 0 ? above : top + 18}px`;
  }

  function nearest(plot, x, y, reach, allowed) {
    let best = -1, least = reach * reach;
    data.places[plot].forEach(([a, b], i) => {
      const d = (a - x) ** 2 + (b - y) ** 2;
      if (d < least && visible(i) && allowed(i)) [best, least] = [i, d];
    });
    return best;
  }

  function arrow(plot, dx, dy) {
    if (current < 0) return nearest(plot, 500, 500, 1e9, () => true);
    const [x, y] = data.places[plot][current];
    const ahead = (i) => {
      const [a, b] = data.places[plot][i], along = (a - x) * dx + (b - y) * dy;
      return along > 0 && along >= Math.abs((a - x) * dy) + Math.abs((b - y) * dx);
    };
    const found = nearest(plot, x, y, 1e9, ahead);
    return found < 0 ? current : found;
  }

  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  plots.forEach((svg, plot) => {
    const at = (event) => {
      const frame = svg.getBoundingClientRect(), scale = 1000 / frame.width;
      show(nearest(plot, (event.clientX - frame.left) * scale, (event.clientY - frame.top) * scale, 24 * scale, () => true), plot, false);
    };
    svg.addEventListener("pointermove", at);
    svg.addEventListener("pointerdown", at);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") show(-1); });
    svg.addEventListener("blur", () => show(-1));
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show(-1);
      if (!(event.key in arrows)) return;
      event.preventDefault();
      show(arrow(plot, ...arrows[event.key]), plot, true);
    });
  });

  byId("controls").hidden = false;
  byId("colour").addEventListener("change", (event) => {
    box.className = `cloud by-${event.target.value}`;
    byId("legend").className = `legend by-${event.target.value}`;
  });
  byId("only").addEventListener("change", (event) => {
    only = event.target.value === "" ? null : Number(event.target.value);
    box.querySelectorAll("circle[data-i]").forEach((dot) => dot.classList.toggle("off", !visible(Number(dot.dataset.i))));
    show(-1);
  });
}

function list() {
  const source = byId("list-data");
  if (!source) return;
  const data = JSON.parse(source.textContent), body = byId("list-rows");
  const pages = () => Math.max(Math.ceil(chosen.length / data.at_once), 1);
  let chosen = data.rows, page = 0;

  function cell(heading, value, predicted, first) {
    const made = document.createElement("td"), label = document.createElement("span");
    const figure = heading.endsWith("%");
    made.className = figure ? "num" : first ? "strong" : value === predicted ? "same" : "";
    label.className = "narrow";
    label.textContent = `${heading} `;
    made.append(label, figure ? value : value < 0 ? "–" : data.classes[value]);
    return made;
  }

  function row([name, ...cells]) {
    const made = document.createElement("tr"), image = document.createElement("th");
    image.scope = "row";
    image.className = "file";
    image.textContent = name;
    made.append(image, ...cells.map((value, n) => cell(data.headings[n], value, cells[0], n === 0)));
    return made;
  }

  function show() {
    const start = page * data.at_once, shown = chosen.slice(start, start + data.at_once);
    body.replaceChildren(...shown.map(row));
    const [first, last, all] = [start + 1, start + shown.length, chosen.length].map((n) => n.toLocaleString("en"));
    byId("list-place").textContent = chosen.length ? `${first} to ${last} of ${all}` : "none";
    byId("list-back").disabled = page === 0;
    byId("list-on").disabled = page + 1 >= pages();
  }

  byId("list-controls").hidden = false;
  byId("list-back").addEventListener("click", () => { page -= 1; show(); });
  byId("list-on").addEventListener("click", () => { page += 1; show(); });
  byId("list-class").addEventListener("change", (event) => {
    const k = event.target.value;
    chosen = data.rows.filter((cells) => k === "" || cells[1] === Number(k));
    page = 0;
    show();
  });
  show();
}

theme();
cloud();
list();
