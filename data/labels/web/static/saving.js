// Sends drafts by themselves and the label when it is done; loses nothing when that fails.

import { base, byId, complain, csrf, key, next, read, revising, say } from "./dom.js";
import { setPhase } from "./moving.js";
import { kept, missing, state } from "./sheet.js";
import { show } from "./show.js";

let timer = 0;
let unsaved = false;
let visibleSince = document.visibilityState === "visible" ? performance.now() : null;

function seconds() {
  if (visibleSince === null) return state.sheet.seconds;
  return state.sheet.seconds + (performance.now() - visibleSince) / 1000;
}

// The key, in a draft too, tells the server which page it comes from.
const body = () =>
  JSON.stringify({ ...state.sheet, seconds: Math.round(seconds() * 10) / 10, key });

// Keeps a change here at once, and on the server soon.
export function keep() {
  unsaved = true;
  read(() => sessionStorage.setItem(kept, body()));
  clearTimeout(timer);
  timer = setTimeout(save, 600);
}

async function save() {
  clearTimeout(timer);
  if (!unsaved || state.leaving) return;
  const sent = body();
  unsaved = false;
  try {
    const response = await post(`${base}/${revising ? "revise/draft" : "draft"}`, sent);
    if (response.ok) {
      byId("saved").textContent = "Draft saved";
      if (!unsaved) read(() => sessionStorage.removeItem(kept));
      return;
    }
    if (state.leaving) return;
    if (response.status === 429 || response.status >= 500) throw new Error("again");
    refused(response.status, await why(response));
  } catch {
    if (state.leaving) return;
    unsaved = true;
    byId("saved").textContent = "Draft not saved yet";
    timer = setTimeout(save, 5000);
  }
}

const post = (address, text) =>
  fetch(address, {
    method: "POST",
    headers: {
      accept: "application/json",
      "content-type": "application/json",
      "x-csrf-token": csrf,
    },
    body: text,
    keepalive: true,
  });

const why = async (response) => {
  const told = await response.json().catch(() => ({}));
  return told.error || "that did not work";
};

function refused(status, text) {
  const sentence = `${text[0].toUpperCase()}${text.slice(1)}.`;
  if (status === 401) complain(sentence, { text: "Sign in", href: "/login" });
  else if (status === 403) complain(sentence, { text: "Reload", href: location.pathname });
  else if (status === 404 || status === 409) complain(sentence, { text: "Go on", href: next });
  else complain(sentence);
}

export async function submit() {
  const { ratings, places: unplaced } = missing();
  if (state.sheet.phase === "rate" && !ratings && unplaced) return setPhase("rank");
  if (ratings || unplaced) return say(byId("todo").textContent);
  if (state.leaving) return undefined;
  state.leaving = true;
  clearTimeout(timer);
  complain("");
  show();
  try {
    const response = await post(`${base}/${revising ? "revise" : "submit"}`, body());
    if (response.ok) {
      read(() => sessionStorage.removeItem(kept));
      location.assign((await response.json()).next);
      return undefined;
    }
    if (response.status === 429) {
      complain("One moment: this is sent again by itself.");
      const wait = Number(response.headers.get("retry-after")) || 5;
      await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
      state.leaving = false;
      return submit();
    }
    refused(response.status, await why(response));
  } catch {
    complain("The server was not reached. Nothing is lost: try again.");
  }
  state.leaving = false;
  show();
  return undefined;
}

document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") {
    visibleSince = performance.now();
    return;
  }
  state.sheet.seconds = seconds();
  visibleSince = null;
  save();
});
window.addEventListener("pagehide", save);
// A page that the browser kept aside may show a task that is done: ask again.
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
