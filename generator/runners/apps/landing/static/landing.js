import { api, find } from "./api.js";
import { showInputs, valuesIn } from "./fields.js";

const form = find("#sign-up");
const email = find("#email");
const button = find("button", form);
const extras = find("#fields");

function showCount(count) {
  const people = count === 1 ? "1 person is in." : `${count.toLocaleString("en")} people are in.`;
  find("#joined").textContent = count === 0 ? "Be the first to sign up." : people;
}

function showProblem(text) {
  find("#problem").textContent = text;
  email.setAttribute("aria-invalid", String(text !== ""));
  if (text) email.focus();
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!email.value.trim()) return showProblem("Please enter your e-mail address.");
  if (!email.validity.valid) return showProblem("This does not look like an e-mail address.");
  showProblem("");
  button.disabled = true;
  try {
    const answer = await api("POST", "api/signups", {
      email: email.value,
      fields: valuesIn(extras),
    });
    showCount(answer.count);
    if (!answer.new) find("#welcome-text").textContent = "You are on the list already. All good!";
    form.hidden = true;
    find("#welcome").hidden = false;
    find("#welcome").focus();
  } catch (error) {
    showProblem(error.message);
  }
  button.disabled = false;
});

email.addEventListener("input", () => showProblem(""));

showInputs(extras);

// The page is whole without the number; when it cannot be had, nothing is missing.
api("GET", "api/signups").then(({ count }) => showCount(count), () => {});
