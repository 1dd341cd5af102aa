/** What the classic script offers as `Backchannel`. */
import { connect } from "./client.js";
import { BackchannelError } from "./errors.js";

Object.assign(globalThis, { Backchannel: { connect, BackchannelError } });
