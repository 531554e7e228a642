// The frame's page: shows what the agent says (server-sent events) and tells
// it when a photo has become visible. Everything from outside is set as text.
"use strict";

const byId = (id) => document.getElementById(id);
const fadeMs = 1500; // a little longer than the crossfade in kiosk.css
let current = ""; // key of the photo that is shown or being loaded

function write(id, text) {
  byId(id).textContent = text;
}

// A date as people say it: "today, 14:05", "yesterday", "Tuesday", "3 May 2024".
function humanDate(iso) {
  const at = new Date(iso);
  const now = new Date();
  const midnight = (d) => new Date(d.getFullYear(), d.getMonth(), d.getDate());
  const days = Math.round((midnight(now) - midnight(at)) / 86400000);
  const time = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (days === 0) return "today, " + time;
  if (days === 1) return "yesterday, " + time;
  if (days > 1 && days < 7) return at.toLocaleDateString([], { weekday: "long" });
  return at.toLocaleDateString([], { day: "numeric", month: "long", year: "numeric" });
}

function describe(photo) {
  write("caption", photo.caption);
  write("from", photo.from);
  const at = photo.takenAt || photo.receivedAt;
  byId("date").dateTime = at;
  write("date", humanDate(at));
}

// Loads and decodes a photo before it is faded in, so that nobody sees it
// being drawn. A photo that another overtakes meanwhile is dropped.
async function show(photo) {
  const key = photo.sender + "/" + photo.moment;
  if (key === current) {
    describe(photo);
    return;
  }
  current = key;
  const img = new Image();
  img.alt = photo.caption || "Photo from " + photo.from;
  img.src = photo.src;
  try {
    await img.decode();
  } catch {
    if (current === key) current = ""; // tried again with the next event
    reportBroken(photo);
    return;
  }
  if (current !== key) return;
  byId("photos").append(img);
  document.body.dataset.state = "photo";
  describe(photo);
  requestAnimationFrame(() => requestAnimationFrame(() => {
    for (const old of byId("photos").children) old.classList.toggle("shown", old === img);
  }));
  setTimeout(() => {
    while (img.previousSibling) img.previousSibling.remove();
  }, fadeMs);
  tellShown(photo);
}

function tell(path, photo) {
  fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ sender: photo.sender, moment: photo.moment }),
  }).catch(() => {}); // the agent is gone; the page shows that by itself
}

// A photo that arrives whole and still cannot be decoded would keep the older
// ones from being shown.
async function reportBroken(photo) {
  try {
    const answer = await fetch(photo.src);
    await answer.blob();
    if (answer.ok) tell("/broken", photo);
  } catch {
    // It was the connection.
  }
}

// Tells the agent once the page can be seen.
function tellShown(photo) {
  if (document.visibilityState !== "visible") {
    document.addEventListener("visibilitychange", () => tellShown(photo), { once: true });
    return;
  }
  if (current !== photo.sender + "/" + photo.moment) return;
  tell("/shown", photo);
}

function showEmpty(headline, hint) {
  current = "";
  byId("photos").replaceChildren();
  write("headline", headline);
  write("hint", hint);
  document.body.dataset.state = "empty";
}

function showNote(note) {
  document.body.classList.toggle("noted", Boolean(note));
  if (!note) return;
  write("note-text", note.text);
  write("note-from", note.from + " · " + humanDate(note.receivedAt));
}

function render(screen) {
  document.body.classList.toggle("offline", !screen.online);
  showNote(screen.note);
  if (!screen.paired) {
    showEmpty("This frame is not paired yet", "Pair the two of you in the app. The frame notices by itself.");
  } else if (!screen.photo) {
    showEmpty("Waiting for the first photo", "What " + screen.partner + " sends appears here.");
  } else {
    show(screen.photo);
  }
}

function listen() {
  const events = new EventSource("/events");
  events.onmessage = (e) => render(JSON.parse(e.data));
  events.onerror = () => {
    document.body.classList.add("offline");
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
}

listen();
