import { api, attempt, copyOf, find, keepFresh, keepingFocus, toast } from "./api.js";
import { showInputs, showValues, valuesIn } from "./fields.js";

const REFRESH_S = 15;
const TYPING_PAUSE_MS = 700;

const list = find("#notes");
const search = find("#search");
const editor = find("#editor");
const title = find("#title");
const body = find("#body");
const extras = find("#fields");
const saved = find("#saved");

let shownState = "";

async function load() {
  const wanted = search.value;
  const { notes, count } = await api("GET", `api/notes?q=${encodeURIComponent(wanted)}`);
  if (wanted === search.value) render(notes, count);
}

function render(notes, count) {
  const rows = notes.map((note) => ({ ...note, when: ago(note.changed_s) }));
  const state = JSON.stringify([rows, count]);
  if (state === shownState) return;
  shownState = state;
  const cards = new Map([...list.children].map((card) => [card.dataset.id, card]));
  keepingFocus(() =>
    list.replaceChildren(
      ...rows.map((note) => renderNote(cards.get(String(note.id)) ?? copyOf("note"), note)),
    ),
  );
  find("#empty").hidden = count > 0;
  find("#none-match").hidden = count === 0 || notes.length > 0;
  find("#spoken").textContent = search.value ? `${notes.length} found` : "";
}

function renderNote(card, note) {
  const [firstLine, ...rest] = note.excerpt.split("\n");
  const time = find("time", card);
  card.dataset.id = note.id;
  find(".note-title", card).textContent = note.title || firstLine;
  find(".note-excerpt", card).textContent = note.title ? note.excerpt : rest.join("\n").trim();
  find(".note-excerpt", card).hidden = !(note.title ? note.excerpt : rest.join("").trim());
  showValues(find(".chips", card), note.fields);
  time.textContent = note.when;
  time.dateTime = new Date(note.changed_s * 1000).toISOString();
  find("button", card).onclick = () =>
    attempt(async () => open(await api("GET", `api/notes/${note.id}`)));
  return card;
}

function ago(changed_s) {
  const seconds = changed_s - Date.now() / 1000;
  if (seconds > -60) return "just now";
  const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });
  if (seconds > -3600) return relative.format(Math.round(seconds / 60), "minute");
  if (seconds > -86400) return relative.format(Math.round(seconds / 3600), "hour");
  if (seconds > -7 * 86400) return relative.format(Math.round(seconds / 86400), "day");
  return new Date(changed_s * 1000).toLocaleDateString("en", { dateStyle: "medium" });
}

/* The editor saves while one types, and once more when it closes. */

let noteId = null;
let savedState = "";
let typing;
let saving = Promise.resolve();

function open(note) {
  noteId = note?.id ?? null;
  title.value = note?.title ?? "";
  body.value = note?.body ?? "";
  showInputs(extras, note?.fields);
  savedState = written();
  tell("");
  editor.showModal();
  (note ? body : title).focus();
  body.setSelectionRange(body.value.length, body.value.length);
}

const written = () =>
  JSON.stringify([title.value.trim(), body.value.trim(), ...Object.values(valuesIn(extras))]);

function tell(text, failed = false) {
  saved.textContent = text;
  saved.classList.toggle("failed", failed);
}

/** Saves run one after the other, so that a new note is created once. True when all is kept. */
function save() {
  clearTimeout(typing);
  saving = saving.then(async () => {
    const state = written();
    const isEmpty = !title.value.trim() && !body.value.trim();
    if (state === savedState || isEmpty) return true;
    tell("Saving…");
    try {
      const note = { title: title.value, body: body.value, fields: valuesIn(extras) };
      const path = noteId === null ? "api/notes" : `api/notes/${noteId}`;
      noteId = (await api(noteId === null ? "POST" : "PUT", path, note)).id;
      savedState = state;
      tell("Saved");
      return true;
    } catch (error) {
      tell(`Not saved. ${error.message}`, true);
      return false;
    }
  });
  return saving;
}

async function close() {
  if (!(await save())) return;
  editor.close();
  await attempt(load);
}

for (const field of [title, body, extras]) {
  field.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(save, TYPING_PAUSE_MS);
  });
}

title.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  body.focus();
});

editor.addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});

find("#editor-form").addEventListener("submit", (event) => {
  event.preventDefault();
  close();
});

find("#delete").addEventListener("click", async () => {
  clearTimeout(typing);
  await saving;
  const id = noteId;
  const note = { title: title.value, body: body.value, fields: valuesIn(extras) };
  if (id !== null && !(await attempt(() => api("DELETE", `api/notes/${id}`)))) return;
  editor.close();
  await attempt(load);
  if (id === null || !(note.title.trim() || note.body.trim())) return;
  const undo = () => attempt(() => api("POST", "api/notes", note).then(load));
  toast("Deleted.", { label: "Undo", run: undo });
});

find("#new").addEventListener("click", () => open(null));
search.addEventListener("input", () => attempt(load));

keepFresh(load, REFRESH_S);
