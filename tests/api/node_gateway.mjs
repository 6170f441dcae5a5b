// Drives the gateway with the official Node SDK; prints what it saw as one JSON object.
// Usage: BASE_URL=... API_KEY=... MODEL=... node node_gateway.mjs PATH_OF_THE_SDK
import { createRequire } from "node:module";
import process from "node:process";

const OpenAI = createRequire(process.argv[2])("openai").default;
const client = new OpenAI({
  baseURL: process.env.BASE_URL,
  apiKey: process.env.API_KEY,
  maxRetries: 0,
});
const model = process.env.MODEL;
const seen = { models: [], chat: "", responses: "" };

for await (const found of client.models.list()) {
  seen.models.push(found.id);
}

const messages = [{ role: "user", content: "Hi" }];
for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
  seen.chat += chunk.choices[0]?.delta?.content ?? "";
}

const stream = client.responses.stream({ model, input: "Hi" });
stream.on("response.output_text.delta", (event) => {
  seen.responses += event.delta;
});
seen.status = (await stream.finalResponse()).status;

// The SDK asks for base64 by itself and hands out numbers.
const embedded = await client.embeddings.create({ model: "node-embedder", input: "Hi" });
seen.embedding = embedded.data[0].embedding.every((number) => typeof number === "number");
console.log(JSON.stringify(seen));
