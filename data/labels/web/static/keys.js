// Everything by keys alone.

import { all, byId, cards, count, letters, mode, read, say } from "./dom.js";
import { focusCard, setPhase, toggleFlags } from "./moving.js";
import { submit } from "./saving.js";
import { choose, rate, setTier, state, tieWithAbove, undo } from "./sheet.js";

export const openDialog = (id) => byId(id)?.showModal();

function digit(value) {
  if (mode === "pairs") {
    if (value >= 1 && value <= 7) choose(value - 4);
  } else if (state.sheet.phase === "rate") {
    if (value >= 1 && value <= 7) {
      rate(state.current, value);
      if (state.current < count - 1) focusCard(state.current + 1);
    }
  } else if (value === 0) {
    setTier(state.current, null);
  } else if (value <= count) {
    setTier(state.current, value);
  } else {
    say(`There are ${count} tiers`);
  }
}

const keys = {
  j: () => focusCard(document.activeElement === document.body ? state.current : state.current + 1),
  k: () => focusCard(state.current - 1),
  r: () => setPhase(state.sheet.phase === "rate" ? "rank" : "rate"),
  f: toggleFlags,
  o: () => cards[state.current].querySelector(".fold")?.click(),
  u: () => {
    undo();
    focusCard(state.current);
  },
  s: () => openDialog("skip"),
  c: () => {
    document.querySelector(".comment").open = true;
    byId("comment").focus();
  },
  "=": tieWithAbove,
  "?": () => openDialog("keys"),
  Escape: () => {
    const box = document.activeElement.closest(".flags");
    if (box) box.open = false;
    focusCard(state.current);
  },
};

const keysOn = () => read(() => localStorage.getItem("keys")) !== "off";

document.addEventListener("keydown", (event) => {
  const at = event.target;
  if (event.defaultPrevented || event.altKey || event.metaKey || event.isComposing) return;
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || !at.matches("button, a, summary, textarea"))) {
    event.preventDefault();
    submit();
    return;
  }
  if (event.ctrlKey || (at.matches("textarea") && event.key !== "Escape")) return;
  if (!keysOn() && !["?", "Escape"].includes(event.key)) return;
  if (/^[0-9]$/.test(event.key)) digit(Number(event.key));
  else if (event.shiftKey && /^[A-I]$/.test(event.key)) {
    if (letters.indexOf(event.key) < count) focusCard(letters.indexOf(event.key));
  } else if (Object.hasOwn(keys, event.key)) keys[event.key]();
  else return;
  event.preventDefault();
});

byId("keys-on").checked = keysOn();
byId("keys-on").addEventListener("change", (event) =>
  read(() => localStorage.setItem("keys", event.target.checked ? "on" : "off")),
);
byId("skip")?.addEventListener("keydown", (event) => {
  const option = all('input[name="reason"]', byId("skip"))[Number(event.key) - 1];
  if (!option) return;
  option.checked = true;
  option.focus();
});
