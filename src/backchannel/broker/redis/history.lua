-- Reads a channel's history in one step.
-- KEYS: the channel's state, the channel's entries (of one hash slot).
-- ARGV: epoch and offset to go on from ("" reads the newest), how many, seconds each is kept, an epoch
--       to begin if need be, what names the engine's run of data, seconds to know the position, "1"
--       where the position was really had (a client may say what it likes), bytes of a page. In a
--       cluster also the names of other engines' runs of data from which the slot came here, whole;
--       "?" first where they are not known.
-- Returns epoch, newest offset, 1 where something is lost, then offset and parcel of each. After "?"
-- an error STRANGE instead of a new epoch: the run that it is of and the time of its newest.
local epoch, run, top, began =
    unpack(redis.call("HMGET", KEYS[1], "epoch", "run", "top", "began"))
top = tonumber(top) or 0
local since = tonumber(ARGV[2])
local limit = tonumber(ARGV[3])
-- Someone who had a later one than the newest there is had one that is lost.
local fell = ARGV[8] == "1" and since and epoch == ARGV[1] and since > top
local unbroken = run == ARGV[6]
for i = 10, #ARGV do
    if not unbroken and run and run == ARGV[i] then
        unbroken = true
        -- As publish.lua says of "began": elsewhere more may have been lost.
        redis.call("HSET", KEYS[1], "run", ARGV[6], "began", (string.gsub(began or "", "1$", "0")))
    end
end
if epoch and not unbroken and ARGV[10] == "?" then
    local newest = redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", 1)[1]
    return redis.error_reply("STRANGE " .. (run or "-") .. " " .. (newest and newest[2][4] or 0))
end
if not epoch or not unbroken or fell then
    began = redis.call("TIME")[1] .. (epoch and " 0" or " 1")
    epoch = ARGV[5]
    redis.call("HSET", KEYS[1], "epoch", epoch, "run", ARGV[6], "top", string.format("%.0f", top),
        "began", began)
end
-- Whoever is told a position may name it again for as long as if it had been published now.
local life = math.ceil(tonumber(ARGV[4])) + ARGV[7]
if redis.call("TTL", KEYS[1]) < life then
    redis.call("EXPIRE", KEYS[1], life)
end
local answer = {epoch, top, 0}
local oldest = redis.call("TIME")[1] - tonumber(ARGV[4])
-- The engine hangs up on who has too much to read: a page has so many bytes, or one entry.
local room = tonumber(ARGV[9])
local entries
if not since then
    entries = {}
    local newest = limit > 0 and redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", limit) or {}
    local count = 0
    while newest[count + 1] and tonumber(newest[count + 1][2][4]) >= oldest
            and (count == 0 or room > 0) do
        count = count + 1
        room = room - #newest[count][2][2]
    end
    for i = count, 1, -1 do
        entries[#entries + 1] = newest[i]
    end
    room = math.huge
elseif epoch ~= ARGV[1] or since > top then
    answer[3] = 1
    return answer
elseif since == top then
    return answer
else
    entries = redis.call("XRANGE", KEYS[2], string.format("%.0f-1", since + 1), "+",
        "COUNT", limit)
    local first = entries[1]
    if not first or tonumber(string.match(first[1], "^%d+")) ~= since + 1
            or tonumber(first[2][4]) < oldest then
        answer[3] = 1
        return answer
    end
end
for i, entry in ipairs(entries) do
    if i > 1 and room <= 0 then
        break
    end
    room = room - #entry[2][2]
    answer[#answer + 1] = tonumber(string.match(entry[1], "^%d+"))
    answer[#answer + 1] = entry[2][2]
end
return answer
