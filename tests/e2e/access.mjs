// Calls every method of the API from Node, with given certificates and token; prints the code of each as JSON.
//
// node access.mjs FOLDER_OF_MODULES PROTO ADDRESS '{"ca": FILE, "cert": FILE, "key": FILE, "token": TEXT}'

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [modules, proto, address, access] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const grpc = require("@grpc/grpc-js");
const { ca, cert, key, token } = JSON.parse(access);
const read = (path) => (path ? readFileSync(path) : null);
const { Recommender } = grpc.loadPackageDefinition(
  require("@grpc/proto-loader").loadSync(proto, { keepCase: true }),
).lhydra.v1;
const credentials = ca ? grpc.credentials.createSsl(read(ca), read(key), read(cert)) : grpc.credentials.createInsecure();
const client = new Recommender(address, credentials);
const metadata = new grpc.Metadata();
if (token) metadata.set("authorization", `Bearer ${token}`);

const options = () => ({ deadline: Date.now() + 60_000 });
const unary = (name, request) =>
  new Promise((done) => client[name](request, metadata, options(), (error) => done(error ? error.code : 0)));
const stream = (name, request) =>
  new Promise((done) => {
    const call = client[name](metadata, options());
    call.on("data", () => {});
    call.on("error", () => {});
    call.on("status", (status) => done(status.code));
    call.write(request);
    call.end();
  });

const user = { user_id: "u", k: 3 };
const codes = {
  Recommend: await unary("Recommend", user),
  RecommendMany: await stream("RecommendMany", user),
  SimilarTracks: await unary("SimilarTracks", { track_ids: ["t1"], k: 3 }),
  Explain: await unary("Explain", { user_id: "u", track_id: "t1" }),
  GetTracks: await unary("GetTracks", { track_ids: ["t1"] }),
  SearchTracks: await unary("SearchTracks", { text: "blue", k: 3 }),
  GetStatus: await unary("GetStatus", {}),
  GetUser: await unary("GetUser", { user_id: "u" }),
  SearchUsers: await unary("SearchUsers", { prefix: "u", k: 3 }),
  ListBundles: await unary("ListBundles", {}),
  GetMap: await unary("GetMap", { max_points: 3 }),
  RecordPlays: await unary("RecordPlays", { plays: [{ event_id: `e-${token}`, user_id: "u", track_id: "t1" }] }),
};
for (const name of Object.keys(codes)) codes[name] = grpc.status[codes[name]];
console.log(JSON.stringify(codes));
client.close();
