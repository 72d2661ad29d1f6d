/* --- gallery ------------------------------------------------------------------------------------------------------ */

const data = JSON.parse($("gallery-data").textContent);
const FIRST = 10;    // people that are shown at once
const EACH = 24;     // reconstructions of a person that are shown at once

const sheets = new Set();
function sheet(number) {
  if (sheets.has(number)) return;
  sheets.add(number);
  const bytes = Uint8Array.from(atob($(`sheet-${number}`).textContent), one => one.charCodeAt(0));
  const url = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  document.styleSheets[0].insertRule(`.s${number} { background-image: url("${url}"); }`);
}

function reveal(one) {
  sheet(Number(one.dataset.sheet));
  one.classList.add(`s${one.dataset.sheet}`);
  seen.unobserve(one);
}
const seen = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) reveal(target);
}, { rootMargin: "400px" });
addEventListener("beforeprint", () => document.querySelectorAll("#wall .tile").forEach(reveal));

function tile(number, wide) {
  const one = make("span", "tile"), place = number % data.tiles;
  const [high, across] = data.inner, scale = wide / across;
  const column = place % data.across, row = Math.floor(place / data.across);
  one.style.width = `${wide}px`;
  one.style.height = `${Math.round(high * scale)}px`;
  one.style.backgroundSize = `${data.across * data.tile[1] * scale}px auto`;
  one.style.backgroundPosition = `${-column * data.tile[1] * scale}px ${-row * data.tile[0] * scale}px`;
  if (across <= 32) one.style.imageRendering = "pixelated";
  one.dataset.sheet = Math.floor(number / data.tiles);
  seen.observe(one);
  return one;
}

function real(number, words, wide) {
  const one = make("div", "shot"), picture = tile(number, wide);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", words);
  one.append(picture, make("span", "", words));
  return one;
}

const targetOf = name => name === "none" ? "no defense" : name;
const width = () => matchMedia("(max-width: 560px)").matches ? 64 : 72;
const state = { group: 0, target: "", attack: "", person: "", verdict: "all", people: FIRST };

/* Reconstructions by person: [run, place] of each that the filters let through. */
function chosen() {
  const group = data.groups[state.group], by = new Map();
  const apart = group.apart.reduce((bits, place) => bits | 1 << place, 0);
  for (const run of data.runs) {
    if (run.group !== state.group || state.target && run.target !== state.target) continue;
    if (state.attack && run.attack !== state.attack) continue;
    run.labels.forEach((label, place) => {
      if (state.person && String(label) !== state.person) return;
      const bits = run.bits[place], judged = bits & apart;
      if (state.verdict === "hit" && !(bits & 1) || state.verdict === "miss" && bits & 1) return;
      if (state.verdict === "apart" && (judged === 0 || judged === apart)) return;
      if (!by.has(label)) by.set(label, []);
      by.get(label).push([run, place]);
    });
  }
  return by;
}

function about(run, place) {
  const group = data.groups[run.group];
  const told = group.judges.map((name, judge) => run.has[judge] ? `${name} ${run.bits[place] >> judge & 1 ? "yes" : "no"}` : "");
  return `${run.attack}, ${targetOf(run.target)}: ${told.filter(Boolean).join(", ")}`;
}

function shot(run, place, name) {
  const group = data.groups[run.group], one = make("button", "shot"), dots = make("div", "dots");
  one.type = "button";
  one.classList.toggle("hit", Boolean(run.bits[place] & 1));
  one.setAttribute("aria-label", `${name}, ${about(run, place)}`);
  one.title = about(run, place);
  group.judges.forEach((judge, bit) => {
    if (bit && run.has[bit]) dots.append(make("i", run.bits[place] >> bit & 1 ? "on" : ""));
  });
  one.append(tile(run.tile + place, width()), make("div", "mark"), dots, make("span", "", run.attack));
  if (!state.target) one.append(make("span", "", targetOf(run.target)));
  one.addEventListener("click", () => enlarge(run, place, name));
  return one;
}

function enlarge(run, place, name) {
  const group = data.groups[run.group], at = group.labels.indexOf(run.labels[place]);
  const wide = matchMedia("(max-width: 560px)").matches ? 84 : 168;
  $("shot-title").textContent = `${name}: ${run.attack}, ${targetOf(run.target)}`;
  $("shot-row").replaceChildren(
    ...(group.private === null ? [] : [real(group.private + at, "private", wide), real(group.heldout + at, "unseen", wide)]),
    real(run.tile + place, "reconstruction", wide));
  $("shot-table").tBodies[0].replaceChildren(...group.judges.flatMap((judge, bit) => {
    if (!run.has[bit]) return [];
    const row = make("tr"), yes = run.bits[place] >> bit & 1;
    row.append(make("td", "", judge), make("td", yes ? "yes" : "no", yes ? "✓ yes" : "✗ no"));
    return [row];
  }));
  const link = make("a", "", run.score);
  link.href = `#run-${run.score}`;
  link.addEventListener("click", () => $("shot").close());
  $("shot-about").replaceChildren("Score ", link);
  $("shot").showModal();
}

function personOf(group, label, list) {
  const at = group.labels.indexOf(label), name = group.names[at];
  const one = make("article", "person"), hits = list.filter(([run, place]) => run.bits[place] & 1).length;
  const photographs = make("div", "row"), made = make("div", "row");
  one.append(make("h3", "", `${name}: ${hits} of ${list.length} hit`));
  if (group.private !== null)
    photographs.append(real(group.private + at, "private", width()), real(group.heldout + at, "unseen", width()));
  else photographs.append(make("span", "small", group.withheld ? "photographs withheld" : "photographs not at hand"));
  made.append(...list.slice(0, EACH).map(([run, place]) => shot(run, place, name)));
  if (list.length > EACH) {
    const more = make("button", "quiet", `all ${list.length}`);
    more.type = "button";
    more.setAttribute("aria-label", `Show all ${list.length} of ${name}`);
    more.addEventListener("click", () => {
      more.replaceWith(...list.slice(EACH).map(([run, place]) => shot(run, place, name)));
    });
    made.append(more);
  }
  one.append(photographs, made);
  return one;
}

function wall() {
  const group = data.groups[state.group], by = chosen();
  const labels = group.labels.filter(label => by.has(label));
  const all = labels.reduce((sum, label) => sum + by.get(label).length, 0);
  $("count").textContent = all ? `${all.toLocaleString("en")} reconstructions of ${labels.length} people` : "No reconstruction is like that.";
  $("wall").replaceChildren(...labels.slice(0, state.people).map(label => personOf(group, label, by.get(label))));
  $("more").hidden = labels.length <= state.people;
  $("more").textContent = `More people (${labels.length - state.people})`;
}

function fill(select, all, options) {
  select.replaceChildren(...[["", all], ...options].map(([value, words]) => {
    const one = make("option", "", words);
    one.value = value;
    return one;
  }));
}

function prepare() {
  const group = data.groups[state.group], own = data.runs.filter(run => run.group === state.group);
  const names = key => [...new Set(own.map(run => run[key]))];
  fill($("target"), "all", names("target").map(name => [name, targetOf(name)]));
  const hits = run => run.bits.filter(bits => bits & 1).length / Math.max(1, run.bits.length);
  const attacks = own.filter(run => run.role === "attack").sort((one, other) => hits(other) - hits(one)).map(run => run.attack);
  fill($("attack"), "all", [...new Set([...attacks, ...names("attack")])].map(name => [name, name]));
  fill($("person"), "all", group.labels.map((label, place) => [String(label), group.names[place]]));
  Object.assign(state, { target: "", attack: attacks[0] ?? "", person: "", people: FIRST });
  $("attack").value = state.attack;
  $("judges").textContent = `Bar: likeness, the headline. Squares from the left: ${group.judges.slice(1).join(", ")}.`;
}

if (data.runs.length) {
  fill($("group"), "", data.groups.map((group, place) => [String(place), group.about]));
  $("group").options[0].remove();
  $("group-field").hidden = data.groups.length < 2;
  $("group").addEventListener("change", () => { state.group = Number($("group").value); prepare(); wall(); });
  for (const key of ["target", "attack", "person"])
    $(key).addEventListener("change", () => { state[key] = $(key).value; state.people = FIRST; wall(); });
  for (const radio of document.querySelectorAll("input[name=verdict]"))
    radio.addEventListener("change", () => { state.verdict = radio.value; state.people = FIRST; wall(); });
  $("more").addEventListener("click", () => { state.people += FIRST; wall(); });
  $("filters").addEventListener("submit", event => event.preventDefault());
  $("filters").hidden = false;
  prepare();
  wall();
} else {
  $("count").textContent = "No reconstructions are at hand.";
}
