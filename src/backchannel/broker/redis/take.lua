-- Returns a session and forgets it, unless it is kept in a later turn than the one that asks is of.
-- KEYS: the session. What is kept there begins with its turn and a space.
-- ARGV: the turn; 0 takes whatever is there.
local kept = redis.call("GET", KEYS[1])
local turn = tonumber(ARGV[1])
if kept and turn > 0 and tonumber(string.match(kept, "^%d+ ") or 0) > turn then
  return false
end
redis.call("DEL", KEYS[1])
return kept
