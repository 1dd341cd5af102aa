export { connect, Front, locate } from "./client.js";
export { Engine } from "./engine.js";
export { BackchannelError } from "./errors.js";
export type * from "./types.js";
