// The page's facts, and the small things that all parts need. The page is there before this runs.

export const root = document.getElementById("task");
export const { base, mode, csrf, key, next } = root.dataset;
export const revising = root.dataset.revising === "1";
export const letters = "ABCDEFGHI";

export const byId = (id) => document.getElementById(id);
export const all = (selector, within = document) => [...within.querySelectorAll(selector)];

export const cards = all(".answer");
export const places = cards.map((_, place) => place);
export const count = cards.length;

export function read(get) {
  try {
    return get();
  } catch {
    return null; // storage is off, or what is in it is not ours
  }
}

export function element(tag, { className = "", text = "", data = {} }) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  Object.assign(made.dataset, data);
  return made;
}

export function say(text) {
  const live = byId("live");
  live.textContent = live.textContent === text ? `${text}\u00a0` : text;
}

export function complain(text, link) {
  const box = byId("message");
  box.hidden = !text;
  box.replaceChildren(text);
  if (!link) return;
  const anchor = element("a", { text: link.text });
  anchor.href = link.href;
  box.append(" ", anchor);
}
