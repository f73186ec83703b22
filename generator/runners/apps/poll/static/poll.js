import { api, attempt, copyOf, find, keepFresh, keepingFocus } from "./api.js";
import { fields, showInputs, showValues, valuesIn } from "./fields.js";

const REFRESH_S = 3;

const list = find("#options");
const peek = find("#peek");
const extras = find("#fields");
const answersList = find("#answers");

let result = { options: [], answers: [], total: 0, voted: false, choice: null };
let peeking = false;

async function load() {
  result = await api("GET", "api/votes");
  render();
}

async function vote(choice) {
  const buttons = [...list.querySelectorAll("button")];
  buttons.forEach((button) => (button.disabled = true));
  const voted = await attempt(async () => {
    result = await api("POST", "api/votes", { choice, fields: valuesIn(extras) });
  });
  // A vote refused was cast before, in another tab: show what counts.
  if (!voted) await load().catch(() => {});
  render();
  if (voted) {
    const { label } = result.options[choice];
    find("#spoken").textContent = `You voted for ${label}. ${summary()}`;
  }
}

const share = (votes) => (result.total ? Math.round((100 * votes) / result.total) : 0);

const summary = () =>
  result.options.map(({ label, votes }) => `${label}: ${share(votes)} percent`).join(", ");

function render() {
  const { options, answers, total, voted, choice } = result;
  const open = voted || peeking;
  const most = Math.max(...options.map(({ votes }) => votes));
  list.classList.toggle("voted", voted);
  keepingFocus(() => {
    while (list.children.length < options.length) list.append(copyOf("option"));
    options.forEach(({ label, votes }, index) => {
      const row = list.children[index];
      const button = find("button", row);
      row.classList.toggle("mine", index === choice);
      row.classList.toggle("leads", open && votes === most && votes > 0);
      button.disabled = voted;
      button.onclick = () => vote(index);
      find(".label", row).textContent = label;
      find(".bar", row).style.setProperty("--share", open ? share(votes) : 0);
      showCount(find(".count", row), open, votes);
    });
  });
  extras.hidden = voted || fields.length === 0;
  answersList.hidden = !open || answers.length === 0;
  answersList.replaceChildren(...answers.map(renderAnswer));
  find("#tally").hidden = false;
  find("#total").textContent =
    total === 0 ? "No votes yet. Be the first!" : `${total} ${total === 1 ? "vote" : "votes"}`;
  find("#thanks").hidden = !voted;
  peek.hidden = voted || total === 0;
  peek.ariaPressed = String(peeking);
  peek.textContent = peeking ? "Hide the results" : "Show the results";
}

function renderAnswer({ label, fields: values }) {
  const row = copyOf("answer");
  find(".answer-label", row).textContent = label;
  showValues(find(".chips", row), values);
  return row;
}

function showCount(element, open, votes) {
  const small = document.createElement("small");
  small.textContent = votes;
  small.ariaLabel = `${votes} votes`;
  element.replaceChildren(...(open ? [`${share(votes)}%`, small] : []));
}

peek.addEventListener("click", () => {
  peeking = !peeking;
  render();
});

showInputs(extras);
keepFresh(load, REFRESH_S);
