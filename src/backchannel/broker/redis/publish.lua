-- Keeps a publication and publishes it, in one step.
-- KEYS: the channel's state, the channel's entries (of one hash slot).
-- ARGV: topic, parcel, how many to keep, seconds to keep each, seconds to know the position after
--       that, an epoch to begin if need be, what names the engine's run of data, the publication's id,
--       "1" where it may have been published already, and how many seconds ago at most.
-- Returns epoch, offset, how many nodes heard it; an error UNSURE where it may have been published, and
-- can't be found since newer ones took its place.
local epoch, run, top = unpack(redis.call("HMGET", KEYS[1], "epoch", "run", "top"))
top = tonumber(top) or 0
if ARGV[9] == "1" and epoch then
    local newest = redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", 1000)
    for _, entry in ipairs(newest) do
        if entry[2][6] == ARGV[8] then
            return {epoch, tonumber(string.match(entry[1], "^%d+")), 0}
        end
    end
    -- It was not published, if what is there goes back to before it could have been.
    local oldest = newest[#newest]
    local age = math.ceil(tonumber(ARGV[10])) + 1
    local sure = top == 0
    if oldest then
        sure = string.match(oldest[1], "^%d+") == "1"
            or tonumber(oldest[2][4]) < redis.call("TIME")[1] - age
    elseif top > 0 then
        sure = age < tonumber(ARGV[4])
    end
    if not sure then
        return redis.error_reply("UNSURE whether it was published before")
    end
end
if not epoch then
    redis.call("DEL", KEYS[2])  -- the engine may have evicted the one without the other
end
if not epoch or run ~= ARGV[7] then
    epoch = ARGV[6]
end
top = top + 1
local position = epoch .. "." .. string.format("%.0f", top)
local now = redis.call("TIME")
redis.call("HSET", KEYS[1], "epoch", epoch, "run", ARGV[7], "top", string.format("%.0f", top))
redis.call("XADD", KEYS[2], "MAXLEN", ARGV[3], string.format("%.0f-1", top),
    "parcel", ARGV[2], "time", now[1], "id", ARGV[8])
local keep = math.ceil(tonumber(ARGV[4]))
redis.call("EXPIRE", KEYS[2], keep)
redis.call("EXPIRE", KEYS[1], keep + ARGV[5])
return {epoch, top, redis.call("PUBLISH", ARGV[1], "@" .. position .. " " .. ARGV[2])}
