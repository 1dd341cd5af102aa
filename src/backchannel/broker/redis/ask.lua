-- Publishes what each node that hears it answers, in one step with counting these.
-- ARGV: topic, parcel.
-- Returns how many listen to the topic. What PUBLISH returns counts also whoever listens to a pattern,
-- and that is no node, which would never answer; it is returned where this user may not use PUBSUB.
local heard = redis.call("PUBLISH", ARGV[1], ARGV[2])
local listening = redis.pcall("PUBSUB", "NUMSUB", ARGV[1])
return listening.err and heard or listening[2]
