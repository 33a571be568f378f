// What the annotator has filled in, and what may be done to it; knows nothing of how it is shown.

import { base, count, letters, mode, places, read, revising, root, say } from "./dom.js";

export const kept = `sheet ${base}${revising ? " revision" : ""}`;

const empty = () => ({
  phase: mode === "rate_and_rank" ? "rate" : "rank",
  tiers: places.map(() => null),
  ratings: places.map(() => null),
  flags: places.map(() => []),
  choice: null,
  comment: "",
  seconds: 0,
});

function begin() {
  // What this tab could not send yet is newer than what the server has.
  const unsent = read(() => sessionStorage.getItem(kept));
  const text = unsent || root.dataset.sheet;
  const { key: _key, ...found } = (text && read(() => JSON.parse(text))) || {};
  return { ...empty(), ...found };
}

// `current` is the answer that keys go to; `leaving` is on while a label is on its way.
export const state = { sheet: begin(), current: 0, leaving: false };
// Behind a correction that is not sent yet stands the label itself.
const past = root.dataset.sent ? [snapshot(JSON.parse(root.dataset.sent))] : [];
const watchers = [];

// What undo brings back, and the answer that was current then; words and time go on.
function snapshot(sheet, current = 0) {
  return JSON.stringify([{ ...sheet, comment: undefined, seconds: undefined }, current]);
}

export const onChange = (watch) => watchers.push(watch);
export const undoable = () => past.length > 0;

export function changed() {
  for (const watch of watchers) watch();
}

export const missing = () => ({
  ratings: mode === "rate_and_rank" ? state.sheet.ratings.filter((one) => one === null).length : 0,
  places:
    mode === "pairs"
      ? Number(state.sheet.choice === null)
      : state.sheet.tiers.filter((tier) => tier === null).length,
});

export function change(what, said) {
  past.push(snapshot(state.sheet, state.current));
  if (past.length > 200) past.shift();
  what(state.sheet);
  changed();
  if (said) say(said);
}

export function undo() {
  if (!past.length) return say("Nothing to undo");
  const [sheet, current] = JSON.parse(past.pop());
  state.sheet = { ...state.sheet, ...sheet };
  state.current = current;
  changed();
  return say("Undone");
}

function dense(tiers) {
  const levels = [...new Set(tiers.filter((tier) => tier !== null))].sort((a, b) => a - b);
  return tiers.map((tier) => (tier === null ? null : levels.indexOf(tier) + 1));
}

export const setTier = (place, tier) =>
  change(
    (sheet) => (sheet.tiers[place] = tier),
    tier === null ? `${letters[place]} taken out` : `${letters[place]}: tier ${tier}`,
  );

export function insertTier(place, before) {
  change((sheet) => {
    sheet.tiers[place] = null;
    const moved = sheet.tiers.map((tier) => (tier !== null && tier >= before ? tier + 1 : tier));
    moved[place] = before;
    sheet.tiers = Math.max(...moved) > count ? dense(moved) : moved;
  }, `${letters[place]} placed between`);
}

export const rate = (place, rating) =>
  change((sheet) => (sheet.ratings[place] = rating), `${letters[place]}: rated ${rating}`);

export const choose = (choice) => change((sheet) => (sheet.choice = choice));

export function setFlag(place, flag, on) {
  change((sheet) => {
    const others = sheet.flags[place].filter((one) => one !== flag);
    sheet.flags[place] = on ? [...others, flag] : others;
  });
}

export function tieWithAbove() {
  if (mode === "pairs") return choose(0);
  const { sheet, current } = state;
  const above = sheet.tiers[current - 1];
  if (sheet.phase !== "rank") return say("Ties are set while you rank: press r");
  if (current === 0) return say("There is no answer above A");
  if (above === null) return say(`Place ${letters[current - 1]} first`);
  return setTier(current, above);
}

// Pairs of answers whose ratings and tiers say the opposite.
export function contradictions() {
  const { ratings, tiers } = state.sheet;
  const above = (values, a, b) => values[a] !== null && values[b] !== null && values[a] > values[b];
  return places.flatMap((a) =>
    places.filter((b) => above(ratings, a, b) && above(tiers, a, b)).map((b) => [a, b]),
  );
}
