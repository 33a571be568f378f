// Shows what is filled in: on the cards, on the board, beside the button.

import { all, byId, cards, count, element, letters, mode, places, root } from "./dom.js";
import { contradictions, missing, state, undoable } from "./sheet.js";

const tiersBox = byId("tiers");
const trayBox = document.querySelector(".tray .slot");
const submitText = byId("submit-text").textContent;

export function show() {
  const { sheet } = state;
  root.dataset.phase = sheet.phase;
  places.forEach(showCard);
  if (tiersBox) showBoard();
  for (const input of all('input[name="choice"]')) {
    input.checked = sheet.choice !== null && Number(input.value) === sheet.choice;
  }
  for (const phase of ["rate", "rank"]) {
    byId(`step-${phase}`)?.setAttribute("aria-pressed", String(sheet.phase === phase));
  }
  const { ratings, places: unplaced } = missing();
  const todo = [];
  if (ratings) todo.push(`${ratings} to rate`);
  if (unplaced) todo.push(mode === "pairs" ? "choose one" : `${unplaced} to place`);
  byId("todo").textContent = todo.length ? `Left: ${todo.join(", ")}` : "";
  const onward = sheet.phase === "rate" && unplaced > 0;
  byId("submit").disabled = state.leaving || (onward ? ratings > 0 : todo.length > 0);
  byId("submit-text").textContent = onward ? "Go on to ranking" : submitText;
  byId("undo").disabled = !undoable();
  showContradictions();
}

function showCard(place) {
  const card = cards[place];
  const { sheet } = state;
  const [rating, tier] = [sheet.ratings[place], sheet.tiers[place]];
  for (const [name, value] of [["rating", rating], ["tier", tier]]) {
    for (const input of all(`input[name="${name}-${place}"]`, card)) {
      input.checked = value !== null && Number(input.value) === value;
    }
  }
  for (const input of all(`input[name="flag-${place}"]`, card)) {
    input.checked = sheet.flags[place].includes(input.value);
  }
  const flags = sheet.flags[place].length;
  card.querySelector(".flags .count").textContent = flags ? String(flags) : "";
  const told = [];
  if (rating !== null) told.push(`rated ${rating}`);
  if (tier !== null) told.push(`tier ${tier}`);
  if (flags) told.push(flags === 1 ? "1 flag" : `${flags} flags`);
  card.querySelector(".state").textContent = told.join(", ");
  card.classList.toggle("done", (sheet.phase === "rate" ? rating : tier) !== null);
}

function showBoard() {
  const rows = [];
  for (let tier = 1; tier <= count; tier += 1) {
    rows.push(element("div", { className: "gap", data: { gap: tier } }));
    const slot = element("div", { className: "slot" });
    slot.append(...chips(tier));
    const number = element("span", { className: "number", text: String(tier) });
    number.setAttribute("aria-label", `Tier ${tier}`);
    const row = element("div", { className: "tier", data: { tier } });
    row.append(number, slot);
    rows.push(row);
  }
  tiersBox.replaceChildren(...rows);
  trayBox.replaceChildren(...chips(null));
  trayBox.parentElement.classList.toggle("empty", !state.sheet.tiers.includes(null));
}

const chips = (tier) => places.filter((place) => state.sheet.tiers[place] === tier).map(chip);

function chip(place) {
  const made = element("button", { className: "chip", text: letters[place], data: { drag: place } });
  made.type = "button";
  made.setAttribute("aria-label", `Go to answer ${letters[place]}`);
  const rating = state.sheet.ratings[place];
  if (rating !== null) made.append(element("small", { text: String(rating) }));
  return made;
}

function showContradictions() {
  const { ratings } = state.sheet;
  const found = contradictions().map(
    ([a, b]) =>
      `${letters[a]} is rated above ${letters[b]} (${ratings[a]}, ${ratings[b]}) but ranked below it`,
  );
  const lines = found.slice(0, 4);
  if (found.length > 4) lines.push(`and ${found.length - 4} more`);
  const box = byId("problems");
  const before = all("li", box).map((one) => one.textContent);
  if (before.join("\n") === lines.join("\n")) return;
  box.replaceChildren(...lines.map((text) => element("li", { text })));
}

// A long text folds; its button unfolds it.
export function fold(text) {
  const most = Number(text.dataset.fold);
  if (text.scrollHeight <= most * 1.25) return;
  const button = element("button", { className: "fold" });
  button.type = "button";
  const set = (folded) => {
    text.classList.toggle("folded", folded);
    button.textContent = folded ? "Show all" : "Fold";
    button.setAttribute("aria-expanded", String(!folded));
  };
  button.addEventListener("click", () => set(!text.classList.contains("folded")));
  text.after(button);
  set(true);
}
