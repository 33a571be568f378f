// Dragging letters into tiers, by mouse, pen or finger.

import { all, byId, element, letters, root } from "./dom.js";
import { focusCard, setPhase } from "./moving.js";
import { insertTier, setTier } from "./sheet.js";

let drag = null;

const target = (event) => {
  const under = document.elementFromPoint(event.clientX, event.clientY);
  return under ? under.closest(".gap, .tier, .tray") : null;
};

function mark(box) {
  for (const one of all(".over")) one.classList.remove("over");
  if (box) box.classList.add("over");
}

root.addEventListener("pointerdown", (event) => {
  const handle = event.target.closest("[data-drag]");
  if (!handle || !byId("tiers") || event.button !== 0) return;
  drag = { place: Number(handle.dataset.drag), x: event.clientX, y: event.clientY, ghost: null };
});

document.addEventListener("pointermove", (event) => {
  if (!drag) return;
  if (!drag.ghost) {
    if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) < 5) return;
    setPhase("rank");
    drag.ghost = element("div", { className: "ghost", text: letters[drag.place] });
    document.body.append(drag.ghost);
    document.body.classList.add("dragging");
  }
  drag.ghost.style.transform = `translate(${event.clientX}px, ${event.clientY}px)`;
  mark(target(event));
});

function drop(event) {
  if (!drag) return;
  const { place, ghost } = drag;
  drag = null;
  if (!ghost) return;
  ghost.remove();
  document.body.classList.remove("dragging");
  mark(null);
  const box = event.type === "pointerup" ? target(event) : null;
  if (!box) return;
  if (box.dataset.gap) insertTier(place, Number(box.dataset.gap));
  else setTier(place, Number(box.dataset.tier) || null);
}

document.addEventListener("pointerup", drop);
document.addEventListener("pointercancel", drop);
root.addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (chip) focusCard(Number(chip.dataset.drag));
});
