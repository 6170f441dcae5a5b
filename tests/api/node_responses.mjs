// Drives /v1/responses with the official Node SDK; prints what it saw as one JSON object.
// Usage: BASE_URL=... API_KEY=... MODEL=... node node_responses.mjs PATH_OF_THE_SDK
import { createRequire } from "node:module";
import process from "node:process";

const OpenAI = createRequire(process.argv[2])("openai").default;
const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  maxRetries: 0,
});
const model = process.env.MODEL;
const seen = { events: [] };

const stream = client.responses.stream({ model, input: "Say yes." });
for await (const event of stream) {
  seen.events.push(event.type);
}
const final = await stream.finalResponse();
seen.text = final.output_text;
seen.status = final.status;

try {
  await client.responses.create({ model, input: "x", previous_response_id: "resp_1" });
} catch (error) {
  seen.refused = { status: error.status, param: error.param, code: error.code };
}
console.log(JSON.stringify(seen));
