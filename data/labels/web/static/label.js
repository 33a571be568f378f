// The task page. Answers go by the place where they stand: 0 is A. The server alone knows more.
"use strict";

(() => {
  const root = document.getElementById("task");
  if (!root) return;

  const { base, mode, csrf, key, next } = root.dataset;
  const count = Number(root.dataset.count);
  const revising = root.dataset.revising === "1";
  const letters = "ABCDEFGHI";
  const byId = (id) => document.getElementById(id);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const cards = all(".answer");
  const places = cards.map((_, place) => place);
  const tiersBox = byId("tiers");
  const trayBox = document.querySelector(".tray .slot");
  const submitText = byId("submit-text").textContent;
  const kept = `sheet ${base}${revising ? " revision" : ""}`;

  // ---- what is filled in

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

  function read(get) {
    try {
      return get();
    } catch {
      return null; // storage is off, or what is in it is not ours
    }
  }

  let sheet = begin();
  let current = 0;
  let leaving = false;
  const past = [];

  const missing = () => ({
    ratings: mode === "rate_and_rank" ? sheet.ratings.filter((one) => one === null).length : 0,
    places:
      mode === "pairs" ? Number(sheet.choice === null) : sheet.tiers.filter((t) => t === null).length,
  });

  function change(what, said) {
    past.push(JSON.stringify({ ...sheet, comment: undefined, seconds: undefined }));
    if (past.length > 200) past.shift();
    what();
    changed();
    if (said) say(said);
  }

  function undo() {
    if (!past.length) return say("Nothing to undo");
    sheet = { ...sheet, ...JSON.parse(past.pop()) };
    changed();
    say("Undone");
  }

  function dense(tiers) {
    const levels = [...new Set(tiers.filter((tier) => tier !== null))].sort((a, b) => a - b);
    return tiers.map((tier) => (tier === null ? null : levels.indexOf(tier) + 1));
  }

  const setTier = (place, tier) =>
    change(
      () => (sheet.tiers[place] = tier),
      tier === null ? `${letters[place]} taken out` : `${letters[place]}: tier ${tier}`,
    );

  function insertTier(place, before) {
    change(() => {
      sheet.tiers[place] = null;
      const moved = sheet.tiers.map((tier) => (tier !== null && tier >= before ? tier + 1 : tier));
      moved[place] = before;
      sheet.tiers = Math.max(...moved) > count ? dense(moved) : moved;
    }, `${letters[place]} placed between`);
  }

  function tieWithAbove() {
    if (mode === "pairs") return choose(0);
    const above = sheet.tiers[current - 1];
    if (sheet.phase !== "rank") return say("Ties are set while you rank: press r");
    if (current === 0) return say("There is no answer above A");
    if (above === null) return say(`Place ${letters[current - 1]} first`);
    setTier(current, above);
  }

  const rate = (place, rating) =>
    change(() => (sheet.ratings[place] = rating), `${letters[place]}: rated ${rating}`);

  const choose = (choice) => change(() => (sheet.choice = choice));

  function setPhase(phase) {
    if (mode !== "rate_and_rank" || sheet.phase === phase) return;
    sheet.phase = phase;
    changed();
    const undone = phase === "rate" ? sheet.ratings : sheet.tiers;
    focusCard(Math.max(0, undone.indexOf(null)));
    say(phase === "rate" ? "Rate the answers, 7 is best" : "Rank the answers, tier 1 is best");
  }

  // ---- showing it

  function show() {
    root.dataset.phase = sheet.phase;
    for (const place of places) showCard(place);
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
    byId("submit").disabled = leaving || (onward ? ratings > 0 : todo.length > 0);
    byId("submit-text").textContent = onward ? "Go on to ranking" : submitText;
    byId("undo").disabled = past.length === 0;
    showContradictions();
  }

  function showCard(place) {
    const card = cards[place];
    for (const name of ["rating", "tier"]) {
      const value = name === "rating" ? sheet.ratings[place] : sheet.tiers[place];
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
    if (sheet.ratings[place] !== null) told.push(`rated ${sheet.ratings[place]}`);
    if (sheet.tiers[place] !== null) told.push(`tier ${sheet.tiers[place]}`);
    if (flags) told.push(flags === 1 ? "1 flag" : `${flags} flags`);
    card.querySelector(".state").textContent = told.join(", ");
    const done = sheet.phase === "rate" ? sheet.ratings[place] : sheet.tiers[place];
    card.classList.toggle("done", done !== null);
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
    trayBox.parentElement.classList.toggle("empty", !sheet.tiers.includes(null));
  }

  function chips(tier) {
    return places
      .filter((place) => sheet.tiers[place] === tier)
      .map((place) => {
        const chip = element("button", { className: "chip", text: letters[place], data: { drag: place } });
        chip.type = "button";
        chip.setAttribute("aria-label", `Go to answer ${letters[place]}`);
        if (sheet.ratings[place] !== null) {
          chip.append(element("small", { text: String(sheet.ratings[place]) }));
        }
        return chip;
      });
  }

  function element(tag, { className = "", text = "", data = {} }) {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    Object.assign(made.dataset, data);
    return made;
  }

  function showContradictions() {
    const found = [];
    for (const a of places) {
      for (const b of places) {
        const better = sheet.ratings[a] !== null && sheet.ratings[b] !== null
          && sheet.ratings[a] > sheet.ratings[b];
        const below = sheet.tiers[a] !== null && sheet.tiers[b] !== null
          && sheet.tiers[a] > sheet.tiers[b];
        if (better && below) {
          found.push(
            `${letters[a]} is rated above ${letters[b]} (${sheet.ratings[a]}, ${sheet.ratings[b]}) but ranked below it`,
          );
        }
      }
    }
    const lines = found.slice(0, 4);
    if (found.length > 4) lines.push(`and ${found.length - 4} more`);
    const box = byId("problems");
    const before = all("li", box).map((one) => one.textContent);
    if (before.join("\n") === lines.join("\n")) return;
    box.replaceChildren(...lines.map((text) => element("li", { text })));
  }

  function say(text) {
    const live = byId("live");
    live.textContent = live.textContent === text ? `${text}\u00a0` : text;
  }

  function complain(text, link) {
    const box = byId("message");
    box.hidden = !text;
    box.replaceChildren(text);
    if (!link) return;
    const anchor = element("a", { text: link.text });
    anchor.href = link.href;
    box.append(" ", anchor);
  }

  // ---- saving

  let timer = 0;
  let unsaved = false;
  let visibleSince = document.visibilityState === "visible" ? performance.now() : null;

  function seconds() {
    if (visibleSince === null) return sheet.seconds;
    return sheet.seconds + (performance.now() - visibleSince) / 1000;
  }

  const body = (more = {}) => JSON.stringify({ ...sheet, seconds: Math.round(seconds() * 10) / 10, ...more });

  function changed() {
    show();
    unsaved = true;
    read(() => sessionStorage.setItem(kept, body()));
    clearTimeout(timer);
    if (!revising) timer = setTimeout(save, 600);
  }

  async function save() {
    clearTimeout(timer);
    if (!unsaved || leaving || revising) return;
    const sent = body();
    unsaved = false;
    try {
      const response = await post(`${base}/draft`, sent);
      if (response.ok) {
        byId("saved").textContent = "Draft saved";
        if (!unsaved) read(() => sessionStorage.removeItem(kept));
        return;
      }
      if (leaving) return;
      if (response.status === 429 || response.status >= 500) throw new Error("again");
      refused(response.status, await why(response));
    } catch {
      if (leaving) return;
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

  async function submit() {
    const { ratings, places: unplaced } = missing();
    if (sheet.phase === "rate" && !ratings && unplaced) {
      return setPhase("rank");
    }
    if (ratings || unplaced) return say(byId("todo").textContent);
    if (leaving) return undefined;
    leaving = true;
    clearTimeout(timer);
    complain("");
    show();
    try {
      const response = await post(`${base}/${revising ? "revise" : "submit"}`, body({ key }));
      if (response.ok) {
        read(() => sessionStorage.removeItem(kept));
        location.assign((await response.json()).next);
        return undefined;
      }
      if (response.status === 429) {
        complain("One moment: this is sent again by itself.");
        const wait = Number(response.headers.get("retry-after")) || 5;
        await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
        leaving = false;
        return submit();
      }
      refused(response.status, await why(response));
    } catch {
      complain("The server was not reached. Nothing is lost: try again.");
    }
    leaving = false;
    show();
    return undefined;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") {
      visibleSince = performance.now();
      return;
    }
    sheet.seconds = seconds();
    visibleSince = null;
    save();
  });
  window.addEventListener("pagehide", save);
  // A page that the browser kept aside may show a task that is done: ask again.
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());

  // ---- moving about

  function focusCard(place) {
    current = Math.min(count - 1, Math.max(0, place));
    const card = cards[current];
    card.focus({ preventScroll: true });
    const tall = card.offsetHeight > window.innerHeight - 80;
    card.scrollIntoView({ block: tall ? "start" : "nearest" });
  }

  function toggleFlags() {
    const box = cards[current].querySelector(".flags");
    box.open = !box.open;
    (box.open ? box.querySelector("input") : cards[current]).focus();
  }

  function digit(value) {
    if (mode === "pairs") {
      if (value >= 1 && value <= 7) choose(value - 4);
    } else if (sheet.phase === "rate") {
      if (value >= 1 && value <= 7) rate(current, value);
    } else if (value === 0) {
      setTier(current, null);
    } else if (value <= count) {
      setTier(current, value);
    } else {
      say(`There are ${count} tiers`);
    }
  }

  function open(id) {
    const dialog = byId(id);
    if (dialog) dialog.showModal();
  }

  const keys = {
    j: () => focusCard(document.activeElement === document.body ? current : current + 1),
    k: () => focusCard(current - 1),
    r: () => setPhase(sheet.phase === "rate" ? "rank" : "rate"),
    f: toggleFlags,
    o: () => cards[current].querySelector(".fold")?.click(),
    u: undo,
    s: () => open("skip"),
    c: () => {
      document.querySelector(".comment").open = true;
      byId("comment").focus();
    },
    "=": tieWithAbove,
    "?": () => open("keys"),
    Escape: () => {
      const box = document.activeElement.closest(".flags");
      if (box) box.open = false;
      focusCard(current);
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

  for (const card of cards) {
    card.addEventListener("focusin", () => {
      current = Number(card.dataset.place);
      for (const other of cards) other.classList.toggle("current", other === card);
    });
    // Arrow keys among radio buttons change them, which `change` tells.
    card.addEventListener("change", ({ target }) => {
      const place = Number(card.dataset.place);
      if (target.name.startsWith("rating-")) rate(place, Number(target.value));
      else if (target.name.startsWith("tier-")) setTier(place, Number(target.value));
      else if (target.name.startsWith("flag-")) {
        change(() => {
          const others = sheet.flags[place].filter((flag) => flag !== target.value);
          sheet.flags[place] = target.checked ? [...others, target.value] : others;
        });
      }
    });
  }

  for (const input of all('input[name="choice"]')) {
    input.addEventListener("change", () => choose(Number(input.value)));
  }

  byId("comment").addEventListener("input", () => {
    sheet.comment = byId("comment").value;
    changed();
  });
  byId("submit").addEventListener("click", submit);
  byId("undo").addEventListener("click", undo);
  byId("skip-open")?.addEventListener("click", () => open("skip"));
  byId("help-open").addEventListener("click", () => open("keys"));
  byId("step-rate")?.addEventListener("click", () => setPhase("rate"));
  byId("step-rank")?.addEventListener("click", () => setPhase("rank"));
  byId("keys-on").checked = keysOn();
  byId("keys-on").addEventListener("change", (event) =>
    read(() => localStorage.setItem("keys", event.target.checked ? "on" : "off")));
  for (const button of all("[data-close]")) {
    button.addEventListener("click", () => button.closest("dialog").close());
  }
  byId("skip")?.addEventListener("keydown", (event) => {
    const option = all('input[name="reason"]', byId("skip"))[Number(event.key) - 1];
    if (!option) return;
    option.checked = true;
    option.focus();
  });

  // ---- dragging letters, by mouse, pen or finger

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
    if (!handle || !tiersBox || event.button !== 0) return;
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

  // ---- long texts

  function fold(text) {
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

  all("[data-fold]").forEach(fold);
  byId("comment").value = sheet.comment;
  if (sheet.comment) document.querySelector(".comment").open = true;
  show();
  focusCard(0);
  window.scrollTo(0, 0);
})();
