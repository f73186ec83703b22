/** Further fields of an entry, as `app.json` lists them: inputs for them, and their values. */

const TYPES = { date: "date", number: "number", tel: "tel", email: "email", url: "url" };

export const fields = JSON.parse(document.body.dataset.fields);

/** Fill `box` with an input for every field; without any it is hidden. */
export function showInputs(box, values = {}) {
  box.hidden = fields.length === 0;
  box.replaceChildren(...fields.map((field) => labelled(field, values[field.name] ?? "")));
}

/** What stands in the inputs of `box`, by field. */
export const valuesIn = (box) =>
  Object.fromEntries(
    [...box.querySelectorAll("[data-field]")].map((input) => [input.dataset.field, input.value]),
  );

/** Fill `box` with the values that are there; without any it is hidden. */
export function showValues(box, values) {
  const given = fields.filter(({ name }) => values[name]);
  box.hidden = given.length === 0;
  box.replaceChildren(...given.map((field) => chip(field, values[field.name])));
}

function labelled(field, value) {
  const label = document.createElement("label");
  const name = document.createElement("span");
  label.className = "extra";
  name.textContent = field.label;
  name.dir = "auto";
  label.append(name, input(field, value));
  return label;
}

function input(field, value) {
  const element = document.createElement(field.kind === "choice" ? "select" : "input");
  element.className = "field";
  element.dataset.field = field.name;
  if (field.kind === "choice") {
    element.append(new Option("", ""), ...field.choices.map((choice) => new Option(choice)));
  } else {
    element.type = TYPES[field.kind] ?? "text";
    element.maxLength = 300;
    element.dir = "auto";
    if (field.kind === "number") element.step = "any";
  }
  element.value = value;
  return element;
}

function chip(field, value) {
  const element = document.createElement("span");
  const name = document.createElement("span");
  element.className = "chip";
  name.className = "chip-name";
  name.textContent = `${field.label} `;
  element.append(name, field.kind === "date" ? shownDate(value) : value);
  return element;
}

const shownDate = (value) =>
  new Date(`${value}T00:00`).toLocaleDateString("en", { dateStyle: "medium" });
