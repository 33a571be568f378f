// Going from answer to answer, and from rating to ranking.

import { cards, count, mode, say } from "./dom.js";
import { changed, state } from "./sheet.js";

export function focusCard(place) {
  state.current = Math.min(count - 1, Math.max(0, place));
  const card = cards[state.current];
  card.focus({ preventScroll: true });
  const tall = card.offsetHeight > window.innerHeight - 80;
  card.scrollIntoView({ block: tall ? "start" : "nearest" });
}

export function setPhase(phase) {
  const { sheet } = state;
  if (mode !== "rate_and_rank" || sheet.phase === phase) return;
  sheet.phase = phase;
  changed();
  const undone = phase === "rate" ? sheet.ratings : sheet.tiers;
  focusCard(Math.max(0, undone.indexOf(null)));
  say(phase === "rate" ? "Rate the answers, 7 is best" : "Rank the answers, tier 1 is best");
}

export function toggleFlags() {
  const card = cards[state.current];
  const box = card.querySelector(".flags");
  box.open = !box.open;
  (box.open ? box.querySelector("input") : card).focus();
}
