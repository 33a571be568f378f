// The task page. Answers go by the place where they stand: 0 is A. The server alone knows more.

import "./drag.js";
import { all, byId, cards } from "./dom.js";
import { openDialog } from "./keys.js";
import { focusCard, setPhase } from "./moving.js";
import { keep, submit } from "./saving.js";
import { changed, choose, onChange, rate, setFlag, setTier, state, undo } from "./sheet.js";
import { fold, show } from "./show.js";

onChange(show);
onChange(keep);

for (const card of cards) {
  const place = Number(card.dataset.place);
  card.addEventListener("focusin", () => {
    state.current = place;
    for (const other of cards) other.classList.toggle("current", other === card);
  });
  // Arrow keys among radio buttons change them, which `change` tells.
  card.addEventListener("change", ({ target }) => {
    if (target.name.startsWith("rating-")) rate(place, Number(target.value));
    else if (target.name.startsWith("tier-")) setTier(place, Number(target.value));
    else if (target.name.startsWith("flag-")) setFlag(place, target.value, target.checked);
  });
}

for (const input of all('input[name="choice"]')) {
  input.addEventListener("change", () => choose(Number(input.value)));
}

byId("comment").addEventListener("input", () => {
  state.sheet.comment = byId("comment").value;
  changed();
});
byId("submit").addEventListener("click", submit);
byId("undo").addEventListener("click", undo);
byId("skip-open")?.addEventListener("click", () => openDialog("skip"));
byId("help-open").addEventListener("click", () => openDialog("keys"));
byId("step-rate")?.addEventListener("click", () => setPhase("rate"));
byId("step-rank")?.addEventListener("click", () => setPhase("rank"));
for (const button of all("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

all("[data-fold]").forEach(fold);
byId("comment").value = state.sheet.comment;
if (state.sheet.comment) document.querySelector(".comment").open = true;
show();
focusCard(0);
window.scrollTo(0, 0);
