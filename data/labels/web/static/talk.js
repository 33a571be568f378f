// The page of a live conversation: write a message, wait for its answers, go to their ranking.

const root = document.getElementById("talk");
const { base, csrf, key } = root.dataset;
const byId = (id) => document.getElementById(id);
const [text, waiting, composer] = ["text", "waiting", "composer"].map(byId);
const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

let turn = root.dataset.turn;
let timer = 0;
let unsaved = false;
let leaving = false;

const ask = (address, body) =>
  fetch(address, {
    method: body === undefined ? "GET" : "POST",
    headers: {
      accept: "application/json",
      "content-type": "application/json",
      "x-csrf-token": csrf,
    },
    body: body === undefined ? undefined : JSON.stringify(body),
    keepalive: body !== undefined,
  });

const why = async (response) =>
  (await response.json().catch(() => ({}))).error || "that did not work";

function complain(words, link) {
  const box = byId("message");
  box.hidden = !words;
  box.replaceChildren(words && `${words[0].toUpperCase()}${words.slice(1)}.`);
  if (!link) return;
  const anchor = document.createElement("a");
  [anchor.textContent, anchor.href] = link;
  box.append(" ", anchor);
}

function refused(status, words) {
  if (status === 401) complain(words, ["Sign in", "/login"]);
  else if (status === 403) complain(words, ["Reload", location.pathname]);
  else if (status === 404 || status === 409) complain(words, ["Go on", base]);
  else complain(words);
}

// Keeps what is written on the server soon.
async function save() {
  clearTimeout(timer);
  if (!unsaved || leaving) return;
  unsaved = false;
  try {
    const response = await ask(`${base}/draft`, { text: text.value });
    if (!response.ok) throw new Error("again");
    byId("saved").textContent = "Draft saved";
  } catch {
    if (leaving) return;
    unsaved = true;
    byId("saved").textContent = "Draft not saved yet";
    timer = setTimeout(save, 5000);
  }
}

function written() {
  unsaved = true;
  clearTimeout(timer);
  timer = setTimeout(save, 600);
  byId("send").disabled = !text.value.trim();
}

function showWaiting(said) {
  composer.hidden = true;
  waiting.hidden = false;
  if (byId("end")) byId("end").textContent = "Wait no longer, and begin another conversation";
  if (said === undefined) return;
  const shown = document.createElement("div");
  shown.className = "turn user";
  const name = document.createElement("h2");
  name.textContent = "You";
  const words = document.createElement("div");
  words.className = "text coming";
  words.dir = "auto";
  words.textContent = said;
  shown.append(name, words);
  byId("said").append(shown);
  waiting.scrollIntoView({ block: "nearest" });
}

// The same key goes with the message however often it is sent: it is taken once.
async function send() {
  const said = text.value.trim();
  if (!said || leaving) return;
  leaving = true;
  clearTimeout(timer);
  complain("");
  byId("send").disabled = true;
  try {
    const response = await ask(base, { key, text: said });
    if (response.ok) {
      const standing = await response.json();
      if (standing.next) {
        location.assign(standing.next);
        return;
      }
      turn = standing.turn;
      showWaiting(said);
      wait();
      return;
    }
    if (response.status === 429) {
      complain("One moment: this is sent again by itself");
      await pause(1000 * (Number(response.headers.get("retry-after")) || 5));
      leaving = false;
      send();
      return;
    }
    refused(response.status, await why(response));
  } catch {
    complain("The server was not reached. Nothing is lost: try again");
  }
  leaving = false;
  byId("send").disabled = false;
}

// Asks again and again, and shows what there is; a server or worker that is away is waited for.
async function wait() {
  const began = performance.now();
  for (let failures = 0; ; ) {
    try {
      const response = await ask(`${base}/${turn}`);
      if (response.ok) {
        failures = 0;
        const standing = await response.json();
        if (standing.next) {
          location.assign(standing.next);
          return;
        }
        show(standing, performance.now() - began);
      } else if ([401, 403, 404].includes(response.status)) {
        refused(response.status, await why(response));
        return;
      } else failures += 1;
    } catch {
      failures += 1;
    }
    if (failures > 2) tell("The server can't be reached just now. Your message is kept; this page tries again by itself.");
    await pause(document.hidden ? 2000 : failures ? 1000 * Math.min(failures, 5) : 250);
  }
}

function show({ texts, worker }, waited) {
  const boxes = waiting.querySelectorAll(".coming");
  texts.forEach((words, place) => {
    if (boxes[place].textContent !== words) boxes[place].textContent = words;
  });
  if (texts.some(Boolean)) tell("The answers are being written…");
  else if (!worker) tell("Nobody answers just now. Your message is kept, and is answered as soon as the models are back. You may leave this page.");
  else if (waited > 5000) tell("Others are being answered, too; yours comes next. Your message is kept.");
}

function tell(words) {
  const box = byId("wait-text");
  if (box.textContent !== words) box.textContent = words;
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
text.addEventListener("input", written);
text.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  send();
});

const openings = [...document.querySelectorAll(".opening")];
function take(button) {
  text.value = button.dataset.text;
  written();
  text.focus();
}
for (const button of openings) button.addEventListener("click", () => take(button));
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target === text) return;
  const chosen = openings[Number(event.key) - 1];
  if (!chosen || composer.hidden) return;
  event.preventDefault();
  take(chosen);
});

document.addEventListener("visibilitychange", () => document.hidden && save());
window.addEventListener("pagehide", save);
// A page that the browser kept aside may be an old one: ask again.
window.addEventListener("pageshow", (event) => event.persisted && location.reload());

if (turn) {
  leaving = true;
  showWaiting();
  wait();
} else if (!composer.hidden) {
  byId("send").disabled = !text.value.trim();
  if (!openings.length) text.focus();
}
