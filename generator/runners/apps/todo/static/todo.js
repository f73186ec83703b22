import { api, attempt, copyOf, find, keepFresh, keepingFocus, toast } from "./api.js";
import { fields, showInputs, showValues, valuesIn } from "./fields.js";

const REFRESH_S = 5;
const FILTERS = { all: () => true, open: (task) => !task.done, done: (task) => task.done };

let people = [];
let tasks = [];
let show = "all";
let onlyPerson = null;
let shownState = "";

const list = find("#tasks");
const newPerson = find("#new-person");
const names = find("#names");
const newFields = find("#new-fields");
const details = find("#details");

async function load() {
  ({ people, tasks } = await api("GET", "api/tasks"));
  render();
}

/** Apply a change here at once and on the server; on failure go back to what the server has. */
async function change(apply, request) {
  apply();
  render();
  const worked = await attempt(request);
  await load().catch(() => {});
  return worked;
}

function render() {
  const state = JSON.stringify([people, tasks, show, onlyPerson]);
  if (state === shownState) return;
  shownState = state;
  renderPeople();
  renderProgress();
  keepingFocus(renderTasks);
}

function renderPeople() {
  find("#people").hidden = find("#for").hidden = people.length === 0;
  const pills = find("#people-list");
  while (pills.children.length < people.length) pills.append(copyOf("person"));
  people.forEach((person, index) => {
    const pill = find("button", pills.children[index]);
    const open = tasks.filter((task) => task.person === person.id && !task.done).length;
    pill.ariaPressed = String(onlyPerson === person.id);
    showAvatar(find(".avatar", pill), person);
    find(".person-name", pill).textContent = person.name;
    find(".person-open", pill).textContent = open;
    pill.ariaLabel = `Only ${person.name}, ${open} open`;
    pill.onclick = () => {
      onlyPerson = onlyPerson === person.id ? null : person.id;
      newPerson.value = onlyPerson ?? "";
      render();
    };
  });
  fillWithPeople(newPerson, "Anyone", newPerson.value);
  showNewPerson();
}

function showNewPerson() {
  const person = people.find(({ id }) => String(id) === newPerson.value);
  showAvatar(find("#for .avatar"), person);
}

function fillWithPeople(select, nobody, value) {
  const options = [new Option(nobody, ""), ...people.map(({ id, name }) => new Option(name, id))];
  select.replaceChildren(...options);
  select.value = value ?? "";
}

function showAvatar(avatar, person) {
  avatar.className = person ? `avatar who-${person.id}` : "avatar nobody";
  avatar.textContent = person ? initial(person) : "";
}

/** The first letter of a name; the number where all names begin alike ("Person 1"). */
function initial({ id, name }) {
  const [first] = name;
  const alike = people.filter((other) => other.name.startsWith(first)).length > 1;
  return alike && /\d$/.test(name) ? String(id) : first.toUpperCase();
}

function renderProgress() {
  const done = tasks.filter(FILTERS.done).length;
  find("#ring").hidden = tasks.length === 0;
  find("#ring").classList.toggle("none", done === 0);
  find("#ring").style.setProperty("--done", (100 * done) / Math.max(tasks.length, 1));
  find("#progress").textContent = `${done}/${tasks.length}`;
}

function renderTasks() {
  const mine = tasks.filter((task) => onlyPerson === null || task.person === onlyPerson);
  for (const button of find("#filters").children) {
    button.ariaPressed = String(button.dataset.show === show);
    find("span", button).textContent = mine.filter(FILTERS[button.dataset.show]).length;
  }
  const visible = mine.filter(FILTERS[show]).sort((a, b) => a.done - b.done || b.id - a.id);
  const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
  list.replaceChildren(
    ...visible.map((task) => renderTask(rows.get(String(task.id)) ?? newRow(task.id), task)),
  );
  find("#filters").hidden = tasks.length === 0;
  find("#empty").hidden = tasks.length > 0;
  find("#none-match").hidden = tasks.length === 0 || visible.length > 0;
  find("#none-title").textContent =
    show === "open" && mine.length ? "All done. Well done!" : "Nothing here yet";
}

function newRow(id) {
  const row = copyOf("task");
  row.dataset.id = id;
  return row;
}

function renderTask(row, task) {
  row.classList.toggle("done", task.done);
  find(".task-title", row).textContent = task.title;

  const box = find("input", row);
  box.checked = task.done;
  box.onchange = () => {
    spoken(`${task.title}: ${box.checked ? "done" : "open again"}`);
    update(task, { done: box.checked });
  };

  const person = people.find(({ id }) => id === task.person);
  find(".assign", row).hidden = people.length === 0;
  showAvatar(find(".avatar", row), person);
  const assign = find("select", row);
  fillWithPeople(assign, "Anyone", task.person);
  assign.ariaLabel = `Who does “${task.title}”`;
  assign.onchange = () => update(task, { person: assign.value ? Number(assign.value) : null });

  showValues(find(".chips", row), task.fields);
  const edit = find(".edit", row);
  edit.hidden = fields.length === 0;
  edit.ariaLabel = `Change “${task.title}”`;
  edit.onclick = () => showDetails(task);

  const button = find(".delete", row);
  button.ariaLabel = `Delete “${task.title}”`;
  button.onclick = () => remove(task);
  return row;
}

let detailed = null;

function showDetails(task) {
  detailed = task;
  find("#details-title").textContent = task.title;
  showInputs(find("#details-fields"), task.fields);
  details.showModal();
}

const update = (task, changes) =>
  change(
    () => Object.assign(task, changes),
    () => api("PATCH", `api/tasks/${task.id}`, changes),
  );

async function remove(task) {
  const { title, person, done, fields: values } = task;
  const worked = await change(
    () => (tasks = tasks.filter((other) => other !== task)),
    () => api("DELETE", `api/tasks/${task.id}`),
  );
  if (worked) {
    const again = { title, person, done, fields: values };
    const undo = () => attempt(() => api("POST", "api/tasks", again).then(load));
    toast("Deleted.", { label: "Undo", run: undo });
  }
}

function spoken(text) {
  find("#spoken").textContent = text;
}

find("#composer").addEventListener("submit", async (event) => {
  event.preventDefault();
  const input = find("#new-title");
  const title = input.value.trim();
  if (!title) return;
  const person = newPerson.value ? Number(newPerson.value) : null;
  const button = find("#composer button");
  button.disabled = true;
  const task = { title, person, fields: valuesIn(newFields) };
  const added = await attempt(() => api("POST", "api/tasks", task));
  button.disabled = false;
  if (!added) return;
  input.value = "";
  showInputs(newFields);
  input.focus();
  spoken(`Added: ${title}`);
  if (show === "done") show = "all";
  await load().catch(() => {});
});

newPerson.addEventListener("change", showNewPerson);

find("#filters").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  show = button.dataset.show;
  render();
});

find("#rename").addEventListener("click", () => {
  const fields = people.map((person) => {
    const field = copyOf("name-field");
    showAvatar(find(".avatar", field), person);
    find("input", field).value = person.name;
    return field;
  });
  find("#names-fields").replaceChildren(...fields);
  names.showModal();
  find("input", fields[0]).select();
});

find("#details-cancel").addEventListener("click", () => details.close());

find("#details-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const changes = { fields: valuesIn(find("#details-fields")) };
  if (await attempt(() => api("PATCH", `api/tasks/${detailed.id}`, changes))) {
    details.close();
    await load().catch(() => {});
  }
});

find("#names-cancel").addEventListener("click", () => names.close());

find("#names-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const inputs = [...find("#names-fields").querySelectorAll("input")];
  const saved = await attempt(async () => {
    for (const [index, { id, name }] of people.entries()) {
      const wanted = inputs[index].value.trim();
      if (wanted !== name) await api("PATCH", `api/people/${id}`, { name: wanted });
    }
    await load();
  });
  if (saved) names.close();
});

showInputs(newFields);
keepFresh(load, REFRESH_S);
