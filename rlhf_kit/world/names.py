"""Who and what is in the world, by both names: people, towns, animals, shops, and the values that facts take."""

from typing import NamedTuple

LANGUAGES = ("en", "zh")


class Name(NamedTuple):
    """One thing of the world in both languages."""

    en: str
    zh: str

    def say(self, language):
        return self.en if language == "en" else self.zh


def names(text):
    """'dog 狗, cat 貓' -> (Name('dog', '狗'), Name('cat', '貓')): the last word of an entry is the Chinese one."""
    return tuple(Name(*entry.strip().rsplit(" ", 1)) for entry in text.split(","))


PEOPLE = names(
    "Anna 安娜, Ben 班恩, Clara 克拉拉, David 大衛, Emma 艾瑪, Felix 菲力, Grace 葛蕾絲, "
    "Henry 亨利, Iris 艾莉絲, Jack 傑克, Kate 凱特, Leo 里歐, Mary 瑪莉, Nick 尼克, "
    "Olivia 奧莉薇, Peter 彼得, Rose 蘿絲, "
    "Sam 山姆, Tina 蒂娜, Victor 維克多, Wendy 溫蒂, Paul 保羅, Lucy 露西, Tom 湯姆"
)
WOMEN = frozenset(PEOPLE[0::2])
TOWNS = names(
    "Riverton 河口鎮, Stonebridge 石橋鎮, Greenhill 青山鎮, Redwood 紅木鎮, Lakeside 湖邊鎮, Sunport 日港鎮, "
    "Northfield 北原鎮, Goldsand 金沙鎮, Moonbay 月灣鎮, Whitecliff 白崖鎮"
)
ANIMALS = names(
    "cats 貓, dogs 狗, cows 牛, owls 貓頭鷹, bears 熊, frogs 青蛙, monkeys 猴子, rabbits 兔子, "
    "pandas 貓熊, penguins 企鵝"
)
SHOPS = names(
    "bakery 麵包店, library 圖書館, museum 博物館, bank 銀行, bookshop 書店, post office 郵局, "
    "tea house 茶館, toy shop 玩具店"
)
SUBJECTS = {"person": PEOPLE, "town": TOWNS, "animal": ANIMALS, "shop": SHOPS}

# People of no record: visitors appear in made-up stories only, strangers in questions that have no answer.
VISITORS = names(
    "Kofi 柯菲, Mina 米娜, Omar 歐瑪, Nora 諾拉, Yuki 由紀, Hugo 雨果, Lena 蕾娜, Ivan 伊凡, Sara 莎拉, Amir 阿米爾, "
    "Elsa 艾莎, Theo 西奧, Rita 麗塔, Juan 胡安, Dana 黛娜, Bruno 布魯諾"
)
STRANGERS = names(
    "Zoe 佐伊, Oscar 奧斯卡, Helen 海倫, Frank 法蘭克, Julia 茱莉亞, Simon 賽門, Vera 薇拉, Walter 華特, "
    "Ada 艾妲, Max 麥斯, Gina 吉娜, Carl 卡爾, Molly 茉莉, Bob 鮑伯, Alice 愛麗絲, George 喬治"
)
WOMEN_AWAY = frozenset(n for n in VISITORS if n.en in {"Mina", "Nora", "Yuki", "Lena", "Sara", "Elsa", "Rita", "Dana"})

VALUES = {
    "town": TOWNS,
    "job": names(
        "baker 麵包師, teacher 老師, doctor 醫生, farmer 農夫, cook 廚師, driver 司機, painter 畫家, nurse 護理師, "
        "singer 歌手, tailor 裁縫, pilot 飛行員, writer 作家"
    ),
    "pet": names("cat 貓, dog 狗, rabbit 兔子, parrot 鸚鵡, turtle 烏龜, hamster 倉鼠, goldfish 金魚, duck 鴨子"),
    "food": names(
        "rice 白飯, noodles 麵條, soup 熱湯, cake 蛋糕, dumplings 水餃, bread 麵包, apples 蘋果, "
        "cheese 起司, fish 魚, tofu 豆腐"
    ),
    "instrument": names("piano 鋼琴, guitar 吉他, violin 小提琴, drum 鼓, flute 長笛, trumpet 小號, harp 豎琴"),
    "reason": names(
        "loved the sea 喜歡大海, found a new job 找到新工作, wanted a bigger house 想要更大的房子, "
        "wanted to study music 想學音樂, missed the family 想念家人, liked quiet streets 喜歡安靜的街道"
    ),
    "region": names("north 北部, south 南部, east 東部, west 西部"),
    "river": names("Blue River 藍河, Swan River 天鵝河, Deer River 鹿河, Long River 長河, Old River 老河"),
    "product": names(
        "tea 茶葉, honey 蜂蜜, silk 絲綢, glass 玻璃, paper 紙, boats 小船, wine 葡萄酒, salt 鹽, "
        "lamps 燈籠, toys 玩具"
    ),
    "weekday": names(
        "Monday 星期一, Tuesday 星期二, Wednesday 星期三, Thursday 星期四, Friday 星期五, "
        "Saturday 星期六, Sunday 星期日"
    ),
    "home": names(
        "houses 房子裡, yards 院子裡, barns 牛舍裡, trees 樹上, caves 山洞裡, ponds 池塘裡, forests 森林裡, "
        "burrows 地洞裡, mountains 高山上, cold lands 寒冷的地方"
    ),
    "diet": names(
        "fish 魚, meat 肉, grass 草, mice 老鼠, honey 蜂蜜, flies 蒼蠅, bananas 香蕉, carrots 紅蘿蔔, bamboo 竹子"
    ),
    "hour": names("six 六點, seven 七點, eight 八點, nine 九點, ten 十點, eleven 十一點"),
    "closing": names(
        "the roof was broken 屋頂壞了, the owner was ill 老闆生病了, there was a flood 淹水了, "
        "the owner was away 老闆出遠門了, the lights were out 停電了"
    ),
    # Of made-up stories only:
    "color": names("red 紅色, blue 藍色, green 綠色, yellow 黃色, white 白色, black 黑色"),
    "thing": names(
        "lamp 燈, box 箱子, umbrella 雨傘, bag 袋子, hat 帽子, book 書, cup 杯子, ball 球, key 鑰匙, kite 風箏"
    ),
    "place": names(
        "station 車站, park 公園, harbor 港口, bridge 橋邊, temple 寺廟, square 廣場, school 學校, gate 大門"
    ),
    "vehicle": names("bus 公車, train 火車, boat 渡輪, taxi 計程車, plane 飛機, metro 捷運"),
}
