// Drives the gateway with the npm `openai` package and prints what it saw as one JSON object.
// Arguments: base URL, model, and the prompts that the scripted upstream knows: plain, tools, refused, endless.
import { createRequire } from "node:module";
import { join } from "node:path";

const require = createRequire(join(process.env.NODE_MODULES_FOLDER, "x.js"));
const { OpenAI, RateLimitError, NotFoundError } = require("openai");

const [baseURL, model, plain, tools, refused, endless] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-client", maxRetries: 0 });
const user = (content) => [{ role: "user", content }];
const seen = {};

const chat = await client.chat.completions.create({ model, messages: user(plain) }).withResponse();
seen.chat = chat.data.choices[0].message.content;
seen.total_tokens = chat.data.usage.total_tokens;
seen.request_id = chat.response.headers.get("x-trimtab-request-id");

let text = "";
let usageSeen = false;
for await (const chunk of await client.chat.completions.create({ model, messages: user(plain), stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usageSeen ||= Boolean(chunk.usage);
}
seen.stream = text;
seen.usage_unasked = usageSeen;

const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const runner = client.chat.completions.stream({
  model,
  messages: user(tools),
  tools: [{ type: "function", function: { name: "get_weather", parameters } }],
});
const called = await runner.finalChatCompletion();
seen.tools = called.choices[0].message.tool_calls.map((call) => [
  call.id,
  call.function.name,
  JSON.parse(call.function.arguments),
]);

try {
  await client.chat.completions.create({ model, messages: user(refused) });
} catch (error) {
  seen.refused = [error instanceof RateLimitError, error.status, error.message];
}
try {
  await client.chat.completions.create({ model: "no-such-model", messages: user(plain) });
} catch (error) {
  seen.unknown = [error instanceof NotFoundError, error.status, error.code];
}

let pieces = 0;
const stream = await client.chat.completions.create({ model, messages: user(endless), stream: true });
for await (const _ of stream) {
  pieces += 1;
  if (pieces === 5) break; // leaving the loop aborts the request
}
seen.pieces = pieces;
const models = await client.models.list();
seen.models = models.data.map((m) => m.id);
console.log(JSON.stringify(seen));
