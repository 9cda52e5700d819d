/** Panels, predictions and quizzes on a page without a kernel.
 *
 * Each place says where its description is (`data-live`, written by tools/site_panels.py). It is fetched when a reader comes
 * near; pictures only when they are asked for. Until then, and without scripts, the saved picture stands there.
 */
import { control } from "./control.js";
import { child } from "./explorable.js";
import { layOver } from "./image.js";

/** What a widget's script asks of its model, over a plain object. */
export function model(state) {
  const heard = {};
  return {
    get: (name) => state[name],
    set(name, value) {
      if (state[name] === value) return;
      state[name] = value;
      for (const event of [`change:${name}`, "change"]) for (const call of heard[event] ?? []) call();
    },
    on: (event, call) => (heard[event] ??= new Set()).add(call),
    off: (event, call) => heard[event]?.delete(call),
    save_changes() {},
  };
}

/** What a student has answered stays in the browser; where nothing can be kept, it lasts as long as the page. */
export const kept = {
  key: (id) => `qlab ${id}`,
  get(id) {
    try {
      return JSON.parse(localStorage.getItem(this.key(id)));
    } catch {
      return null;
    }
  },
  set(id, value) {
    try {
      localStorage.setItem(this.key(id), JSON.stringify(value));
    } catch {
      /* private windows and full disks keep nothing */
    }
  },
};

/** The place of a frame: the last control moves fastest. */
export const frameOf = (controls, at) => controls.reduce((place, { said }, i) => place * said.length + at[i], 0);

/** One that the browser computes. */
async function drawn(el, { script, state, data }, at, guess) {
  const [widget, bytes] = await Promise.all([
    import(`./${script}`),
    fetch(new URL(data, at)).then((answer) => answer.arrayBuffer()),
  ]);
  const held = model({ ...state, data: new DataView(bytes) });
  guess?.((value) => held.set("guess", value));
  el.replaceChildren();
  widget.default.render({ model: held, el });
}

/** A control of a panel of frames; `moved` is told the place of its new value. */
function controlOf(el, { kind, label, said, start }, moved) {
  if (said.length < 2) return;
  const box = child(el, "div", { class: "qlab-slider" });
  if (kind === "slider") {
    const options = { label, minimum: 0, maximum: said.length - 1 };
    const show = control(box, (place) => {
      show(options, place, said[place]);
      moved(place);
    });
    show(options, start, said[start]);
    return;
  }
  const name = child(box, "label");
  if (kind === "box") {
    const input = child(name, "input", { type: "checkbox" });
    input.checked = start === 1;
    input.addEventListener("change", () => moved(Number(input.checked)));
    name.append(label);
    return;
  }
  name.append(label);
  const select = child(name, "select");
  for (const text of said) child(select, "option").textContent = text;
  select.selectedIndex = start;
  select.addEventListener("change", () => moved(select.selectedIndex));
}

/** A picture, what it finds above it (site.css), and a guess in it where `marks` has a place for that: [along, share].
 *
 * The function that comes back shows what there is to say, and another picture if it is given one.
 */
function picture(el, source, size, marks, guess) {
  const finding = child(el, "strong", { class: "qlab-finding", "aria-hidden": "true" });
  const sheet = child(child(el, "div", { class: "qlab-frame", tabindex: "0" }), "div", { class: "qlab-image" });
  const image = child(sheet, "img", { src: source, width: size[0], height: size[1], class: "dark-light" }); // not dimmed by the theme
  guess?.((value) => {
    const place = marks?.[String(value)];
    if (place) child(sheet, "div", { class: `qlab-guess-${place[0]}`, style: `--share: ${100 * place[1]}%` });
  });
  const words = child(el, "em", { role: "status" });
  return ([found, alt, photos], address) => {
    if (address) image.src = address;
    image.alt = finding.textContent = found;
    words.textContent = alt;
    sheet.querySelectorAll("span").forEach((old) => old.remove());
    for (const part of photos) layOver(child(sheet, "span"), part, image.src); // not turned over in the dark
  };
}

/** One whose pictures were drawn beforehand. */
async function frames(el, spec, at, guess, marks) {
  const { controls, folder } = spec;
  const now = controls.map(({ start }) => start);
  const address = (places) => new URL(`${folder}/${frameOf(controls, places)}.webp`, at).href;
  let words; // fetched with the first move
  let asked = 0;
  el.replaceChildren();
  el.classList.add("qlab-explorable");
  controls.forEach((each, i) =>
    controlOf(el, each, async (place) => {
      now[i] = place;
      const mine = ++asked;
      words ??= fetch(new URL(spec.words, at)).then((answer) => answer.json());
      const next = new Image();
      next.src = address(now);
      const number = frameOf(controls, now);
      const [said] = await Promise.all([words, next.decode()]).catch(() => [(words = undefined)]);
      if (mine !== asked) return; // moved on meanwhile
      show(said?.[number] ?? ["", "This picture could not be loaded.", []], said && next.src);
    }),
  );
  const show = picture(el, address(now), spec.size, marks, guess);
  show(spec.says);
  if (spec.note) child(el, "p", { class: "qlab-note" }).textContent = spec.note;
}

function still(el, spec, at, guess, marks) {
  picture(el, new URL(spec.file, at).href, spec.size, marks, guess)(spec.says);
}

function text(el, spec) {
  child(el, "pre", { tabindex: "0" }).textContent = spec.text;
}

/** A question, and what answers it, covered until there is a guess. */
async function prediction(el, spec, at) {
  const id = at.pathname.split("/").slice(-2).join("/");
  const held = model({ ...spec.state, guess: kept.get(id) });
  held.on("change:guess", () => kept.set(id, held.get("guess")));
  const hears = (call) => {
    held.on("change:guess", () => call(held.get("guess")));
    if (held.get("guess") !== null) call(held.get("guess"));
  };
  const widget = (await import("./predict.js")).default;
  el.replaceChildren();
  el.classList.add("qlab-predict");
  widget.render({ model: held, el: child(el, "div") });
  const covered = child(el, "div", { class: "qlab-covered" });
  for (const [i, shown] of spec.shown.entries())
    await KINDS[shown.kind](child(covered, "div"), shown, at, hears, spec.marks[i]);
}

/** Questions with one right choice each; the explanation appears below the choice. */
function quiz(el, { questions, verdicts }, at) {
  const id = at.pathname.split("/").slice(-2).join("/");
  const answers = kept.get(id) ?? {};
  el.replaceChildren();
  questions.forEach(({ text: question, choices }, number) => {
    const set = child(el, "fieldset", { class: "qlab-question" });
    child(set, "legend").textContent = `${number + 1}. ${question}`;
    const buttons = child(set, "div", { role: "radiogroup" });
    const said = child(set, "p", { role: "status" });
    const answer = (place) => {
      const [, because, right] = choices[place];
      said.replaceChildren();
      child(said, "strong").textContent = verdicts[Number(right)];
      said.append(` ${because}`);
    };
    choices.forEach(([words], place) => {
      const label = child(buttons, "label");
      const input = child(label, "input", { type: "radio", name: `${id} ${number}` });
      label.append(words);
      input.checked = answers[number] === place;
      input.addEventListener("change", () => {
        answer(place);
        answers[number] = place;
        kept.set(id, answers);
      });
    });
    buttons.setAttribute("aria-label", question);
    if (choices[answers[number]]) answer(answers[number]);
  });
}

const KINDS = { drawn, frames, still, text, prediction, quiz };

async function begin(el) {
  const at = new URL(el.dataset.live, location.href);
  const answer = await fetch(at);
  if (!answer.ok) return; // the saved picture stays
  const spec = await answer.json();
  await KINDS[spec.kind](el, spec, at);
  el.dataset.kind = spec.kind; // it lives now
}

if (typeof document !== "undefined") {
  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        begin(target);
      }
    },
    { rootMargin: "300px" },
  );
  for (const el of document.querySelectorAll(".qlab-live")) near.observe(el);
}
